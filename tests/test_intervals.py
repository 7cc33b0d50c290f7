"""Intervals over images: textbook cases, and how often those of means and shares hold a known value.

Those of average precision are simulated in `slow/test_interval_coverage.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from surgerylib.errors import ParameterError
from surgerylib.intervals import (
    basic_interval,
    degrees_of_freedom,
    half_samples,
    jackknife_interval,
    number,
    resampled_means,
    share_interval,
    with_interval,
)  # fmt: skip


@pytest.mark.parametrize("n_images", [0, 1, 2, 7])
def test_half_samples_hold_half_of_the_images(n_images):
    held = half_samples(n_images, 5, seed=0)
    assert held.shape == (5, n_images)
    assert (held.sum(axis=1) == n_images // 2).all()
    np.testing.assert_array_equal(held, half_samples(n_images, 5, seed=0))


def test_half_samples_of_a_mean_give_its_textbook_interval():
    values = np.random.default_rng(0).normal(0.3, 0.2, size=30)
    samples = half_samples(30, 20_000, seed=0) @ values / 15
    low, high = jackknife_interval(values.mean(), samples, 29, least=-1)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=1e-12)
    assert high - low == pytest.approx(2 * 2.04523 * values.std(ddof=1) / np.sqrt(30), rel=0.02)


def test_the_jackknife_interval_is_cut_at_its_range_and_neither_moved_nor_stretched():
    value, samples = np.array([0.01, 0.99, 0.5, 0.5, np.nan]), np.array([[0.1, 0.9, 0.4, np.nan, np.nan]] * 2)
    samples[1] += 0.1
    low, high = jackknife_interval(value, samples, np.array([10, 10, 10, 10, 0]), least=0)
    reach = 2.22814 * 0.05
    np.testing.assert_allclose(low[:3], [0, 0.99 - reach, 0.5 - reach], atol=1e-5)
    np.testing.assert_allclose(high[:3], [0.01 + reach, 1, 0.5 + reach], atol=1e-5)
    assert np.isnan([low[3:], high[3:]]).all()
    assert jackknife_interval(np.array(-0.99), np.array([-1.0, -0.8]), 1, least=-1) == (-1, pytest.approx(0.28, 0.01))


@pytest.mark.parametrize(("class_images", "degrees"), [
    ([11], 10), ([11, 11, 0], 20), ([1000, 3], 2.01), ([0, 0], 0), ([1, 1, 0], 0)
])  # fmt: skip
def test_degrees_of_freedom_are_those_of_the_rare_classes(class_images, degrees):
    assert degrees_of_freedom(np.array(class_images)) == pytest.approx(degrees, rel=0.005)


@pytest.mark.parametrize(("share", "n_images"), [(0.9, 2), (0.65, 5), (0.9, 10), (0.65, 60)])
def test_the_interval_of_a_share_holds_it_with_few_images_too(share, n_images):
    """Boxes of an image are alike. Basic bootstrap intervals of 0.9 held it in 20 % of draws of 2 images."""
    held = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        images = np.repeat(np.arange(n_images), rng.integers(1, 5, n_images))
        chance = rng.beta(4 * share, 4 * (1 - share), n_images)[images]
        hits = (rng.random(len(images)) < chance).astype(float)[:, None]
        point, samples, n = resampled_means(hits, images, 200, seed)
        low, high = share_interval(point, samples, len(hits), n)
        held += low[0] <= share <= high[0]
    assert held / 150 >= 0.9


@pytest.mark.parametrize("n_images", [3, 5, 10, 40])
def test_the_interval_of_a_mean_holds_it_with_few_images_too(n_images):
    """Plain basic bootstrap intervals of a Beta(4, 2) mean held it in 77 % of draws of 3 images, 86 % of 5."""
    held = 0
    for seed in range(200):
        values = np.random.default_rng(seed).beta(4, 2, n_images)[:, None]
        low, high = basic_interval(*resampled_means(values, np.arange(n_images), 200, seed))
        held += low[0] <= 4 / 6 <= high[0]
    assert held / 200 >= 0.88


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_an_interval_of_a_share_at_its_ends(end):
    values = np.full((3, 1), end)
    low, high = share_interval(*resampled_means(values, np.arange(3), 50, 0)[:2], 3, 3)
    assert end == pytest.approx(high[0] if end else low[0], abs=1e-15)
    assert high[0] - low[0] > 0.5
    assert np.isnan(share_interval(*resampled_means(values, np.zeros(3), 50, 0)[:2], 3, 1)).all()


def test_means_of_nothing_and_of_one_image_have_no_interval():
    for n_images in (0, 1):
        assert np.isnan(basic_interval(*resampled_means(np.ones((n_images, 2)), np.arange(n_images), 50, 0))).all()
    message = "images names 2 rows, 3 have values"
    refused(resampled_means, ParameterError, message, np.ones((3, 1)), [0, 1], 50, 0)


def test_how_a_number_and_an_interval_are_written():
    assert [number(value) for value in (0.3124, -0.3124, -0.0001)] == ["0.312", "−0.312", "0.000"]
    assert [number(value, sign=True) for value in (0.3124, -0.3124, -0.0001)] == ["+0.312", "−0.312", "+0.000"]
    assert with_interval(0.3, 0.25, 0.35) == "0.300 [0.250, 0.350]"
    assert with_interval(-0.1, -0.2, 0.0, sign=True) == "−0.100 [−0.200, +0.000]"
    assert with_interval(0.3, np.nan, np.nan) == "0.300 [interval not available]"
    assert with_interval(np.nan, np.nan, np.nan) == "no boxes"
