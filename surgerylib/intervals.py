"""95 % intervals over images: what other sets of as many images would give; and how a number and they are written.

Of average precision and its differences: `half_samples` and `jackknife_interval`. Of means: the bootstrap,
`resampled_means` and `basic_interval`. Of shares: Wilson's, with the bootstrap's spread, `share_interval`.

These take a value [...] on all images and samples of it [R, ...], of which NaN ones are left out, and give low and
high, each [...]: NaN where there is no interval, and always where there are fewer than two images.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from .errors import ParameterError


def student(degrees: np.ndarray | float) -> np.ndarray:
    """The 97.5 % quantile of Student's t; NaN for 0 degrees of freedom."""
    return stdtrit(np.asarray(degrees, dtype=np.float64), 0.975)


@lru_cache(maxsize=2)  # a sweep asks for the same hundreds of times
def half_samples(n_images: int, n_halves: int, seed: int) -> np.ndarray:
    """Which images are in each random half of the images: bool [n_halves, n_images]; the others are a half too."""
    rng = np.random.default_rng(seed)
    held = np.zeros((n_halves, n_images), dtype=bool)
    for row in held:
        row[rng.permutation(n_images)[: n_images // 2]] = True
    held.flags.writeable = False
    return held


def degrees_of_freedom(class_images: np.ndarray) -> float:
    """Satterthwaite's (1946) degrees of freedom of the spread of a mean over C classes, in `class_images` [C] images.

    A class with boxes in m images tells its own spread with m - 1 degrees of freedom, and its variance is taken to go
    as 1 / m: a few rare classes that make up most of the variance leave few degrees for the mean. Where no class is in
    two images there are 0: nothing tells how much the next image would differ. Classes in none are left out.
    """
    known = class_images[class_images > 0].astype(np.float64)
    if not (known > 1).any():
        return 0.0
    return float((1 / known).sum() ** 2 / (1 / (known**2 * np.maximum(known - 1, 1))).sum())


def jackknife_interval(
    value: np.ndarray, samples: np.ndarray, degrees: np.ndarray | float, *, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of `value` ± Student's t times the standard deviation over half-samples, inside [`least`, 1].

    Given the whole set, the variance over half-samples without replacement is that of a mean over the whole set
    (delete-half jackknife: Shao and Wu 1989, A General Theory for Jackknife Variance Estimation). Copies of an image,
    as the bootstrap draws them, would rank side by side and distort a ranking. `degrees` of freedom of their spread are
    one number or [...], and without one there is no interval; `least` is 0, or -1 for differences.
    """
    nothing = np.isnan(samples).all(axis=0) | (np.asarray(degrees) == 0)
    half_width = student(degrees) * np.nanstd(np.where(nothing, 0.0, samples), axis=0)
    return _known(nothing, np.clip(value - half_width, least, 1), np.clip(value + half_width, least, 1))


def _known(nothing: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


def bootstrap_weights(n_images: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn, with replacement: [n_resamples, n_images]."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, n_images), dtype=np.uint16 if n_images < 1 << 16 else np.uint32)
    for row in weights if n_images else ():
        row[:] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
    return weights


def basic_interval(point: np.ndarray, samples: np.ndarray, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Basic 95 % interval [2 x - q(97.5 %), 2 x - q(2.5 %)] of bootstrap quantiles q.

    For means and ratios of sums over images, which duplicates of an image do not bias (Davison and Hinkley 1997,
    Bootstrap Methods and their Application, section 5.2). Few images widen it as Student's t does, and by the
    sqrt(n / (n - 1)) that a bootstrap's spread is short of. `n_images` is one number, or [...].
    """
    nothing = np.isnan(samples).all(axis=0) | (n_images < 2)
    low, high = np.nanquantile(np.where(nothing, 0.0, samples), [0.025, 0.975], axis=0)
    others = np.maximum(np.asarray(n_images) - 1, 1)
    wider = student(others) / student(np.inf) * np.sqrt((others + 1) / others)
    return _known(nothing, point - wider * (high - point), point + wider * (point - low))


def share_interval(
    point: np.ndarray, samples: np.ndarray, n_rows: int | np.ndarray, n_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of rows (Wilson 1927), with the spread that the bootstrap over images shows.

    The spread says how many independent rows the share is worth: no more than the `n_rows` there are, one number or
    [...]. A share of exactly 0 or 1 has no spread to tell it, and then counts one row an image. Few images widen it as
    Student's t does.
    """
    point = np.asarray(point, dtype=np.float64)
    nothing = np.isnan(point) | np.isnan(samples).all(axis=0) | (n_images < 2)
    # the bootstrap's variance of a mean is short by (n - 1) / n
    variance = np.nanvar(np.where(nothing, 0.0, samples), axis=0) * n_images / max(n_images - 1, 1)
    share = np.where(nothing, 0.0, point)
    binomial = share * (1 - share)
    known = (binomial > 0) & (variance > 0)
    worth = np.divide(binomial, variance, out=np.full(point.shape, float(max(n_images, 1))), where=known)
    ratio = student(max(n_images - 1, 1)) ** 2 / np.clip(worth, 1, np.maximum(n_rows, 1))
    half_width = np.sqrt(ratio * (binomial + ratio / 4)) / (1 + ratio)
    centre = (share + ratio / 2) / (1 + ratio)
    return _known(nothing, np.clip(centre - half_width, 0, 1), np.clip(centre + half_width, 0, 1))


def resampled_means(
    values: np.ndarray, images: np.ndarray | pd.Series, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Means over rows, and the same in bootstrap resamples of the images that the rows are in.

    Args:
        values: [G, F], F numbers of each row.
        images: [G] which image each row is in.

    Returns:
        means [F], those of the resamples [R, F], and the number of images; NaN without a row.
    """
    image, known = pd.factorize(np.asarray(images), sort=True)
    if len(image) != len(values):
        raise ParameterError(f"images names {len(image)} rows, {len(values)} have values; give one for each")
    if not len(known):
        return np.full(values.shape[1], np.nan), np.full((1, values.shape[1]), np.nan), 0
    sums = np.stack([np.bincount(image, weights=column, minlength=len(known)) for column in values.T], axis=1)
    counts = np.bincount(image, minlength=len(known))
    drawn = bootstrap_weights(len(known), n_resamples, seed).astype(np.float64)
    samples = (drawn @ sums) / (drawn @ counts)[:, None]
    return sums.sum(axis=0) / counts.sum(), samples, len(known)


def number(value: float, *, sign: bool = False) -> str:
    """`0.312`, `−0.312`, with `sign` `+0.312`: as every table, sentence and figure writes it. Zero is never minus."""
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text.replace("-", "−")


def counted(n: int, noun: str) -> str:
    """`1 box`, `1,234 images`."""
    plural = noun + ("es" if noun.endswith(("x", "s")) else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def interval_text(low: float, high: float, *, sign: bool = False) -> str:
    """`[0.280, 0.344]`: the one way in which an interval is written."""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def with_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """`0.312 [0.280, 0.344]`; says when there is no value, or no interval. A difference has its sign."""
    if math.isnan(value):
        return "no boxes"
    known = "[interval not available]" if math.isnan(low) else interval_text(low, high, sign=sign)
    return f"{number(value, sign=sign)} {known}"
