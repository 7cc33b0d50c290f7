"""95 % intervals over images: of average precision, of means, and of shares.

Average precision on few images is too high, by several standard errors of a mean over many classes: best precisions
are maxima over noise. Drawing with replacement adds to that (copies of an image rank side by side) without telling how
much; a half-sample without replacement is what half as many images would have given. Its excess over the whole set
shows how fast the bias falls, and its variance given the whole set is that of the whole set's mean (the half-sample
replication of surveys: McCarthy 1969; as the delete-half jackknife: Shao and Wu 1989): `half_samples`, `interval`.

Means and shares have no such bias. Theirs come from the bootstrap: `resampled_means`, `basic_interval`,
`share_interval`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pandas as pd

from .errors import ParameterError

_NORMAL = 1.959964  # the 97.5 % quantile
# a bias that falls as n^(-2/3), as the maxima of a noisy falling curve do, is this many times the half-samples' excess
_BIAS_FACTOR = 1 / (2 ** (2 / 3) - 1)
# flat precision curves make it n^(-1/2) (factor 2.4), steep ones n^-1 (factor 1): standard deviation of the factor
_BIAS_DOUBT = 0.3
# the value with the bias taken off varies more than the plain one (measured: 1.05 to 1.17 times), for the bias is the
# less the higher the value
_SPREAD_FACTOR = 1.1


@lru_cache(maxsize=2)  # a sweep asks for the same hundreds of times
def half_samples(n_images: int, n_resamples: int, seed: int) -> np.ndarray:
    """Which images each resample holds, 0 or 1: uint8 [n_resamples, n_images].

    Two resamples in a row share the images between them: whatever is linear in the images cancels in their mean, and
    the bias shows with little noise.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, n_images), dtype=np.uint8)
    for first in range(0, n_resamples, 2):
        held = rng.permutation(n_images)[: n_images // 2]
        weights[first, held] = 1
        weights[first + 1 : first + 2] = 1 - weights[first]
    weights.flags.writeable = False
    return weights


def keep_mean_at_zero(samples: np.ndarray, samples_at_zero: np.ndarray, at_zero: np.ndarray) -> np.ndarray:
    """`samples` [R, ...] with their part `samples_at_zero` [R, ...] moved to the mean `at_zero` [...].

    The 11-point rule's level at recall 0 takes the best precision there is, often after one or two detections: it does
    not settle as images are added, so what half-samples have more or less of it is noise, not a bias to take off.
    """
    known = ~np.isnan(samples)
    return samples - (samples_at_zero.sum(axis=0, where=known) / np.maximum(known.sum(axis=0), 1) - at_zero)


def degrees_of_freedom(class_images: np.ndarray) -> float:
    """Satterthwaite's degrees of freedom of the spread of a mean over classes.

    A class with boxes in m images tells its own spread with m - 1 degrees of freedom, and its variance is taken to go
    as 1 / m: a few rare classes that make up most of the variance leave few degrees for the mean.

    Args:
        class_images: [C] images with ground truth of the class; those without any are left out.

    Returns:
        0 where no class is in two images: nothing tells how much the next image would differ.
    """
    known = np.asarray(class_images, dtype=np.float64)
    known = known[known > 0]
    each = np.maximum(known - 1, 1)
    if not (known > 1).any():
        return 0.0
    return float((1 / known).sum() ** 2 / (1 / (known**2 * each)).sum())


def interval(
    point: np.ndarray, samples: np.ndarray, degrees: np.ndarray | float, n_images: int, *, proportion: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends of the 95 % interval: bias taken off, never without `point` itself.

    Args:
        point: [...] the value on all images.
        samples: [R, ...] the value in each half-sample; NaN ones are left out.
        degrees: [...] or one number, of freedom of their spread: `degrees_of_freedom`; no interval where it is 0.
        n_images: with fewer than two there is nothing to resample, and no interval.
        proportion: a value in [0, 1], whose variance falls towards both ends as p (1 - p); the interval holds the p
            that `point` is compatible with (Wilson 1927). Otherwise a difference of two such values, and symmetric.

    Returns:
        low, high, each [...]; NaN where there is no interval.
    """
    nothing = np.isnan(samples).all(axis=0) | (n_images < 2) | (np.asarray(degrees) == 0)
    samples = np.where(nothing, 0.0, samples)
    degrees = np.maximum(degrees, 1)
    excess = np.nanmean(samples, axis=0) - point
    centre = point - _BIAS_FACTOR * excess
    spread = _SPREAD_FACTOR * _student(degrees) * np.nanstd(samples, axis=0)
    doubt = _NORMAL * _BIAS_DOUBT * excess
    if proportion:
        centre = np.clip(centre, 0, 1)
        # the ends solve (centre - p)^2 = ratio p (1 - p) + doubt^2
        variance = point * (1 - point)
        ratio = np.divide(spread**2, variance, out=np.zeros_like(variance), where=variance > 0)
        root = np.sqrt(ratio**2 + 4 * ratio * centre * (1 - centre) + 4 * doubt**2 * (1 + ratio))
        low, high = (2 * centre + ratio - root) / (2 + 2 * ratio), (2 * centre + ratio + root) / (2 + 2 * ratio)
    else:
        half_width = np.sqrt(spread**2 + doubt**2)
        low, high = centre - half_width, centre + half_width
    least = 0 if proportion else -1
    low, high = np.clip(np.minimum(low, point), least, 1), np.clip(np.maximum(high, point), least, 1)
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


def _student(degrees: np.ndarray | float) -> np.ndarray | float:
    """97.5 % quantile of Student's t (Wallace 1959): 4 % too wide at 2 degrees of freedom, 1 % from 3 on."""
    corrected = _NORMAL * (1 + 2 / (8 * degrees + 1))
    return np.sqrt(degrees * np.expm1(corrected**2 / degrees))


def bootstrap_weights(n_images: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn, with replacement: [n_resamples, n_images]."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_resamples, n_images), dtype=np.uint16 if n_images < 1 << 16 else np.uint32)
    for row in weights if n_images else ():
        row[:] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
    return weights


def basic_interval(point: np.ndarray, samples: np.ndarray, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Basic 95 % interval [2 x - q(97.5 %), 2 x - q(2.5 %)] of bootstrap quantiles q, widened to hold x itself.

    For means and ratios of sums over images, which duplicates of an image do not bias (Davison and Hinkley 1997,
    Bootstrap Methods and their Application, section 5.2). Few images widen it as Student's t does, and by the
    sqrt(n / (n - 1)) that a bootstrap's spread is short of.

    Args:
        point: [...] x, the value on all images.
        samples: [R, ...] the value in each bootstrap resample; NaN ones are left out.
        n_images: one number, or [...]; with fewer than two there is no interval.

    Returns:
        low, high, each [...]; NaN where there is no interval.
    """
    nothing = np.isnan(samples).all(axis=0) | (n_images < 2)
    low, high = np.nanquantile(np.where(nothing, 0.0, samples), [0.025, 0.975], axis=0)
    others = np.maximum(np.asarray(n_images) - 1, 1)
    wider = _student(others) / _NORMAL * np.sqrt((others + 1) / others)
    low, high = np.minimum(point - wider * (high - point), point), np.maximum(point + wider * (point - low), point)
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


def share_interval(
    point: np.ndarray, samples: np.ndarray, n_rows: int | np.ndarray, n_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of rows (Wilson 1927), with the spread that the bootstrap over images shows.

    The spread says how many independent rows the share is worth: no more than there are rows. A share of exactly 0 or 1
    has no spread to tell it, and then counts one row an image. Few images widen it as Student's t does.

    Args:
        point: [...] the share.
        samples: [R, ...] the share in each bootstrap resample; NaN ones are left out.
        n_rows: one number, or [...], of rows that the share is of.
        n_images: with fewer than two there is no interval.

    Returns:
        low, high, each [...]; NaN where there is no interval.
    """
    point = np.asarray(point, dtype=np.float64)
    nothing = np.isnan(point) | np.isnan(samples).all(axis=0) | (n_images < 2)
    # the bootstrap's variance of a mean is short by (n - 1) / n
    variance = np.nanvar(np.where(nothing, 0.0, samples), axis=0) * n_images / max(n_images - 1, 1)
    share = np.where(nothing, 0.0, point)
    binomial = share * (1 - share)
    known = (binomial > 0) & (variance > 0)
    worth = np.divide(binomial, variance, out=np.full(point.shape, float(max(n_images, 1))), where=known)
    ratio = _student(max(n_images - 1, 1)) ** 2 / np.clip(worth, 1, np.maximum(n_rows, 1))
    half_width = np.sqrt(ratio * (binomial + ratio / 4)) / (1 + ratio)
    centre = (share + ratio / 2) / (1 + ratio)
    low, high = np.minimum(centre - half_width, share), np.maximum(centre + half_width, share)
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


def resampled_means(
    values: np.ndarray, images: np.ndarray | pd.Series, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Means over rows, and the same in bootstrap resamples of the images that the rows are in.

    Args:
        values: [G, F], F numbers of each row.
        images: [G] which image each row is in.
        n_resamples: R.
        seed: of the resamples.

    Returns:
        means [F], those of the resamples [R, F], and the number of images; NaN without a row.

    Raises:
        ParameterError: not one image for each row.
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


def interval_text(low: float, high: float, *, sign: bool = False) -> str:
    """`[0.280, 0.344]`: the one way in which an interval is written."""
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def with_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """`0.312 [0.280, 0.344]`; says when there is no value, or no interval. A difference has its sign."""
    if math.isnan(value):
        return "no boxes"
    known = "[interval not available]" if math.isnan(low) else interval_text(low, high, sign=sign)
    return f"{number(value, sign=sign)} {known}"
