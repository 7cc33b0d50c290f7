"""How good detections are: average precision with VOC's or COCO's rules, and its intervals over images.

Frames are pandas. Ground truth: image_id, label, xmin, ymin, xmax, ymax; detections add score. Boxes are float xyxy
pixels, width = xmax - xmin. Scores are compared over all images as they are given, never rescaled per image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from .curves import (
    INTERPOLATIONS,
    ClassCurves,
    class_curves,
    halves_average_precision,
    weighted_average_precision,
)
from .errors import ParameterError
from .frames import BOX_COLUMNS, Evaluation, check_names, evaluate
from .intervals import degrees_of_freedom, half_samples, interval, keep_mean_at_zero

__all__ = [
    "INTERPOLATIONS",
    "IOU_THRESHOLDS",
    "BootstrapResult",
    "PairedDifference",
    "average_precision",
    "bootstrap_map",
    "mean_average_precision",
    "paired_difference",
]
IOU_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
# numbers of a bootstrap block that are worked on at a time, per thread: few enough for the cache, and for pairs of
# halves, whose calls are shorter, enough that threads don't wait for each other's interpreter lock
_BLOCK, _BLOCK_OF_PAIRS = 1 << 17, 1 << 19


def average_precision(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    interpolation: str = "11point",
    max_detections: int | None = None,
    classes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Average precision of each class at each IoU threshold.

    Detections of a class are sorted by score over all images (equal scores keep the frame's order), matched inside
    their own image only. A match needs IoU >= threshold.

    - `11point` (VOC 2007): the mean, over recall 0, 0.1 ... 1, of the best precision at that recall or above. The
      recall is compared exactly, as a ratio of whole numbers.
    - `area` (VOC 2010 on): the area under that precision envelope. Both with VOC's matching: a detection goes to its
      highest-IoU box; a box already taken makes it a false positive.
    - `coco101`: 101 recall levels and COCO's matching (the best box still free): what pycocotools computes for area
      `all`, without crowds and without its cap of 100 detections. Its order of equal scores, by image, is this one's
      when the frame is sorted by image.

    Args:
        detections: frame with image_id, label, xmin, ymin, xmax, ymax, score.
        ground_truth: frame with image_id, label, xmin, ymin, xmax, ymax.
        iou_thresholds: each in (0, 1].
        interpolation: one of `INTERPOLATIONS`.
        max_detections: only so many detections of a class in an image, those with the highest scores (COCO's maxDets).
        classes: also listed, besides every label that occurs.

    Returns:
        Frame label, iou_threshold, ap, n_ground_truth, n_detections, a row for each class and threshold. A class
        without ground truth has ap NaN; one with ground truth but no detections has 0.

    Raises:
        ParameterError: a column is missing, a score or box is not a finite number, an argument is out of range.
    """
    run = evaluate(detections, ground_truth, iou_thresholds, interpolation, max_detections, classes)
    ap, _ = _point_estimate(run)
    return _class_frame(
        run.classes,
        run.iou_thresholds,
        ap=ap,
        n_ground_truth=np.repeat(run.n_ground_truth[:, None], ap.shape[1], axis=1),
        n_detections=np.repeat(np.diff(run.class_bounds)[:, None], ap.shape[1], axis=1),
    )


def mean_average_precision(average_precisions: pd.DataFrame) -> pd.DataFrame:
    """mAP by IoU threshold: frame iou_threshold, map, n_classes (the classes with ground truth, which it averages).

    Args:
        average_precisions: what `average_precision` returned.
    """
    column, thresholds = pd.factorize(average_precisions["iou_threshold"])
    ap = average_precisions["ap"].to_numpy(np.float64)
    known = ~np.isnan(ap)
    n_classes = np.bincount(column[known], minlength=len(thresholds))
    with np.errstate(invalid="ignore"):
        mean = np.bincount(column[known], ap[known], minlength=len(thresholds)) / n_classes
    return pd.DataFrame(
        {"iou_threshold": np.asarray(thresholds, dtype=np.float64), "map": mean, "n_classes": n_classes}
    )


def _class_curves(run: Evaluation) -> list[ClassCurves]:
    return [
        class_curves(run.is_tp[:, low:high], run.image_of_detection[low:high])
        for low, high in pairwise(run.class_bounds)
    ]


def _point_estimate(run: Evaluation) -> np.ndarray:
    """AP, and the part of it at recall 0: [2, C, T]; every image counts once."""
    once = np.ones((1, len(run.images)), dtype=np.uint8)
    estimates = np.empty((2, len(run.classes), len(run.iou_thresholds)))
    for c, (curve, n_truth) in enumerate(zip(_class_curves(run), run.n_ground_truth[:, None], strict=True)):
        ap, at_zero = weighted_average_precision(curve, once, n_truth, run.interpolation)
        estimates[:, c] = ap[0], at_zero[0]
    return estimates


@dataclass(frozen=True)
class BootstrapResult:
    """Average precision with its 95 % intervals over images; R resamples, C classes, T thresholds.

    Intervals (`intervals.interval`) rest on half-samples of the images. Average precision is biased upward, more so on
    half the images; how much more tells the bias, which is taken off, so the value often stands near the upper end.

    95 % intervals of mAP and of paired differences were simulated for 13 populations of known value: 50 to 500 images,
    3 or 20 classes, good to bad detectors, the embedded scenes, 300 to 400 draws each, on which the constants were
    chosen too. Of their mAPs 13 % under `11point` and 5 % under `area` were held less often than in 92 % of the draws,
    of the differences 7 % and 3 % (basic bootstrap intervals: down to 22 %); most others lay between 92 and 98 %. Less:

    - 20 classes of about 8 boxes each, where the bias is three standard errors: 82 to 98 %;
    - `11point` where mAP is below 0.1 or above 0.8, or precision at the top of the ranking still grows at thousands of
      images: 80 to 91 % in the worst cells, 55 % at mAP 0.004. One of its levels is a maximum that few detections
      decide. Under `area` the same are held in 91 to 99 %.

    A class with AP exactly 0 or 1 is that in every half-sample: its interval is a point, which says nothing.

    Attributes:
        classes: [C] names; a class without ground truth has NaN throughout.
        iou_thresholds: [T].
        interpolation: one of `INTERPOLATIONS`.
        n_images: how many images were evaluated, and resampled.
        class_images: [C] how many of them hold ground truth of the class.
        map_degrees: degrees of freedom of the spread of `map`, few where a class is in few images.
        seed: of the resamples.
        ap: [C, T] point estimates, those of `average_precision`.
        ap_samples: [R, C, T] those of the half-samples, the part at recall 0 moved under `11point`; NaN where a
            half-sample holds no ground truth of the class.
        map: [T] mean of `ap` over classes with ground truth.
        map_samples: [R, T] the same in each resample, over the classes that it has ground truth of.
        data_hash: of image ids and ground truth; what two results must share to be compared.
    """

    classes: tuple[str, ...]
    iou_thresholds: tuple[float, ...]
    interpolation: str
    n_images: int
    class_images: np.ndarray
    map_degrees: float
    seed: int
    ap: np.ndarray
    ap_samples: np.ndarray
    map: np.ndarray
    map_samples: np.ndarray
    data_hash: str

    def summary(self) -> pd.DataFrame:
        """Frame iou_threshold, map, low, high; low and high are NaN (not available) unless a class is in two images."""
        low, high = _map_interval(self, self.map, self.map_samples)
        return pd.DataFrame({"iou_threshold": self.iou_thresholds, "map": self.map, "low": low, "high": high})

    def mean_over_thresholds(self) -> tuple[float, float, float]:
        """mAP averaged over the IoU thresholds, with its own interval: value, low, high."""
        return _threshold_mean(self)

    def without_classes(self) -> BootstrapResult:
        """The same without the figures of single classes, whose resamples take twenty times the memory of the rest."""
        ap, ap_samples = self.ap[:0], np.empty((len(self.map_samples), 0, len(self.iou_thresholds)))
        return replace(self, classes=(), class_images=self.class_images[:0], ap=ap, ap_samples=ap_samples)

    def of_classes(self, labels: Sequence[str]) -> BootstrapResult:
        """The same of some classes alone: the mean over them, in the same resamples of the images.

        Raises:
            ParameterError: a class that was not evaluated, or whose figures were left out (`without_classes`).
        """
        strangers = [label for label in labels if label not in self.classes]
        if strangers:
            known = ", ".join(map(str, self.classes))
            raise ParameterError(f"there are no figures of {strangers[0]!r}, only of {known}; name those")
        rows = [place for place, label in enumerate(self.classes) if label in set(labels)]
        ap, ap_samples, class_images = self.ap[rows], self.ap_samples[:, rows], self.class_images[rows]
        of = hashlib.sha256("\0".join(map(str, (self.data_hash, *(self.classes[row] for row in rows)))).encode())
        return replace(
            self,
            classes=tuple(self.classes[row] for row in rows),
            class_images=class_images,
            map_degrees=degrees_of_freedom(class_images),
            ap=ap,
            ap_samples=ap_samples,
            map=_mean_over_classes(ap),
            map_samples=_mean_over_classes(ap_samples),
            data_hash=of.hexdigest(),
        )

    def class_summary(self) -> pd.DataFrame:
        """Frame label, iou_threshold, ap, low, high: a row for each class and threshold."""
        degrees = np.maximum(self.class_images - 1, 0)[:, None]
        low, high = interval(self.ap, self.ap_samples, degrees, self.n_images, proportion=True)
        return _class_frame(self.classes, self.iou_thresholds, ap=self.ap, low=low, high=high)


@dataclass(frozen=True)
class PairedDifference:
    """AP of one result minus another's on the same images, with 95 % intervals; C classes, T thresholds.

    Attributes:
        classes: [C] those of both results.
        iou_thresholds: [T].
        n_images: how many images both evaluated.
        class_images: [C] how many of them hold ground truth of the class.
        map_degrees: degrees of freedom of the spread of `map`.
        ap: [C, T] differences; `ap_samples`: [R, C, T].
        map: [T] differences; `map_samples`: [R, T].
    """

    classes: tuple[str, ...]
    iou_thresholds: tuple[float, ...]
    n_images: int
    class_images: np.ndarray
    map_degrees: float
    ap: np.ndarray
    ap_samples: np.ndarray
    map: np.ndarray
    map_samples: np.ndarray

    def summary(self) -> pd.DataFrame:
        """Frame iou_threshold, difference, low, high, excludes_zero (the interval does)."""
        low, high = _map_interval(self, self.map, self.map_samples)
        return pd.DataFrame(
            {
                "iou_threshold": self.iou_thresholds,
                "difference": self.map,
                "low": low,
                "high": high,
                "excludes_zero": (low > 0) | (high < 0),
            }
        )

    def mean_over_thresholds(self) -> tuple[float, float, float]:
        """The difference averaged over the IoU thresholds, with its own interval: value, low, high."""
        return _threshold_mean(self)

    def class_summary(self) -> pd.DataFrame:
        """Frame label, iou_threshold, difference, low, high, excludes_zero."""
        degrees = np.maximum(self.class_images - 1, 0)[:, None]
        low, high = interval(self.ap, self.ap_samples, degrees, self.n_images, proportion=False)
        excludes_zero = (low > 0) | (high < 0)
        return _class_frame(
            self.classes, self.iou_thresholds, difference=self.ap, low=low, high=high, excludes_zero=excludes_zero
        )


def bootstrap_map(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    image_ids: Iterable[str],
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    interpolation: str = "11point",
    max_detections: int | None = None,
    classes: Sequence[str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> BootstrapResult:
    """Draws half of the images, without replacement, and evaluates average precision anew each time.

    Detections are matched once: matching stays inside an image, so a resample only changes which images count.
    The result does not depend on the order of `image_ids`, nor on the number of threads.

    Args:
        detections: as for `average_precision`, and so are the arguments not named here.
        ground_truth: as for `average_precision`.
        image_ids: all images evaluated, those without boxes or detections too, each once.
        n_resamples: number of resamples R.
        seed: of the numpy Generator that draws them; the same ids and seed give the same resamples.

    Raises:
        ParameterError: as `average_precision`; an image id is repeated; a detection or box is on another image.
    """
    for name, value, least in (("n_resamples", n_resamples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ParameterError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    run = evaluate(detections, ground_truth, iou_thresholds, interpolation, max_detections, classes)
    ids = _checked_ids(image_ids, run.images)
    place = ids.get_indexer(run.images)
    run = run._replace(
        images=ids, image_of_detection=place[run.image_of_detection], image_of_truth=place[run.image_of_truth]
    )
    weights = half_samples(len(ids), n_resamples, int(seed))
    class_images = _images_of_classes(run)
    ap, at_zero = _point_estimate(run)
    ap_samples = _resampled(run, weights, at_zero)
    return BootstrapResult(
        classes=run.classes,
        iou_thresholds=tuple(run.iou_thresholds.tolist()),
        interpolation=interpolation,
        n_images=len(ids),
        class_images=class_images,
        map_degrees=degrees_of_freedom(class_images),
        seed=int(seed),
        ap=ap,
        ap_samples=ap_samples,
        map=_mean_over_classes(ap),
        map_samples=_mean_over_classes(ap_samples),
        data_hash=_data_hash(ids, ground_truth),
    )


def paired_difference(result_a: BootstrapResult, result_b: BootstrapResult) -> PairedDifference:
    """`result_a` minus `result_b`, resample by resample: the images' own difficulty cancels out.

    Raises:
        ParameterError: the two differ in images, ground truth, thresholds, interpolation, seed or resamples.
    """
    for what, a, b in (
        ("images or ground truth", result_a.data_hash[:12], result_b.data_hash[:12]),
        ("IoU thresholds", result_a.iou_thresholds, result_b.iou_thresholds),
        ("interpolation", result_a.interpolation, result_b.interpolation),
        ("seed", result_a.seed, result_b.seed),
        ("number of resamples", len(result_a.map_samples), len(result_b.map_samples)),
    ):
        if a != b:
            raise ParameterError(f"not a paired comparison: the {what} differ ({a} and {b}); evaluate both alike")
    classes = tuple(name for name in result_a.classes if name in result_b.classes)
    rows_a, rows_b = ([result.classes.index(name) for name in classes] for result in (result_a, result_b))
    return PairedDifference(
        classes=classes,
        iou_thresholds=result_a.iou_thresholds,
        n_images=result_a.n_images,
        class_images=result_a.class_images[rows_a],
        map_degrees=result_a.map_degrees,
        ap=result_a.ap[rows_a] - result_b.ap[rows_b],
        ap_samples=result_a.ap_samples[:, rows_a] - result_b.ap_samples[:, rows_b],
        map=result_a.map - result_b.map,
        map_samples=result_a.map_samples - result_b.map_samples,
    )


def _checked_ids(image_ids: Iterable[str], used: pd.Index) -> pd.Index:
    try:
        ids = pd.Index(list(image_ids), tupleize_cols=False)
        check_names("image_ids", ids)
    except TypeError:
        raise ParameterError(f"image_ids is {image_ids!r}; give a list of all images") from None
    if ids.has_duplicates:
        raise ParameterError(f"image_ids names {ids[ids.duplicated()][0]!r} twice; give every image once")
    strangers = used.difference(ids, sort=False)
    if len(strangers):
        raise ParameterError(
            f"{len(strangers)} images with detections or boxes are not in image_ids, {strangers[0]!r} for one; "
            "give all images that were evaluated"
        )
    return ids.sort_values()


def _images_of_classes(run: Evaluation) -> np.ndarray:
    """[C]: how many images hold ground truth of each class."""
    held = np.unique(run.class_of_truth * len(run.images) + run.image_of_truth)
    return np.bincount(held // max(len(run.images), 1), minlength=len(run.classes))


def _resampled(run: Evaluation, weights: np.ndarray, at_zero: np.ndarray) -> np.ndarray:
    """AP of every resample [R, C, T], its part at recall 0 moved to the mean `at_zero` [C, T]."""
    n_resamples, n_classes = len(weights), len(run.classes)
    samples = np.full((n_resamples, n_classes, len(run.iou_thresholds)), np.nan)
    samples_at_zero = np.zeros_like(samples)
    curves = _class_curves(run)
    truth = _truth_counts(run, weights)
    in_pairs = 2 * (n_resamples // 2)  # two in a row are a half and the other
    if run.interpolation == "area" or ((weights[:in_pairs:2] ^ 1) != weights[1:in_pairs:2]).any():
        in_pairs = 0

    def work(task: tuple[int, slice]) -> None:
        c, block = task
        n_truth = truth[block, c]
        if block.start < in_pairs:
            halves = halves_average_precision(
                curves[c], weights[block][::2], n_truth.reshape(-1, 2).T, run.interpolation
            )  # fmt: skip
            samples[block, c], samples_at_zero[block, c] = (
                of_halves.swapaxes(0, 1).reshape(len(n_truth), -1) for of_halves in halves
            )
        else:
            samples[block, c], samples_at_zero[block, c] = weighted_average_precision(
                curves[c], weights[block], n_truth, run.interpolation
            )

    tasks = []
    for c in np.flatnonzero(run.n_ground_truth):
        numbers = max(1, len(curves[c].places), len(curves[c].images))
        pairs, rest = max(1, _BLOCK_OF_PAIRS // numbers), max(1, _BLOCK // numbers)
        for first, stop, step in ((0, in_pairs, 2 * pairs), (in_pairs, n_resamples, rest)):
            tasks += [(c, slice(start, min(start + step, stop))) for start in range(first, stop, step)]
    # numpy lets go of the interpreter lock in these array operations
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, tasks))
    return keep_mean_at_zero(samples, samples_at_zero, at_zero)


def _truth_counts(run: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Ground-truth boxes of each class in each resample: int64 [R, C]."""
    by_image = np.zeros((len(run.images), len(run.classes)))
    np.add.at(by_image, (run.image_of_truth, run.class_of_truth), 1)
    return np.rint(weights.astype(np.float64) @ by_image).astype(np.int64)  # whole numbers, far below 2^53


def _mean_over_classes(ap: np.ndarray) -> np.ndarray:
    """[..., C, T] -> [..., T]: over the classes that are not NaN; NaN where all are."""
    known = ~np.isnan(ap)
    with np.errstate(invalid="ignore"):
        return np.where(known, ap, 0.0).sum(axis=-2) / known.sum(axis=-2)


def _map_interval(
    result: BootstrapResult | PairedDifference, point: np.ndarray, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of a mean over classes: point [...], samples [R, ...]."""
    proportion = isinstance(result, BootstrapResult)
    return interval(point, samples, result.map_degrees, result.n_images, proportion=proportion)


def _threshold_mean(result: BootstrapResult | PairedDifference) -> tuple[float, float, float]:
    value = result.map.mean()
    low, high = _map_interval(result, value, result.map_samples.mean(axis=1))
    return float(value), float(low), float(high)


def _class_frame(classes: Sequence[str], iou_thresholds: Sequence[float], **columns: np.ndarray) -> pd.DataFrame:
    """A row for each class and threshold; each column is [C, T]."""
    frame = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    labels = np.repeat(np.array(classes, dtype=object), len(iou_thresholds))
    frame.insert(0, "label", pd.Series(labels).infer_objects())
    frame.insert(1, "iou_threshold", np.tile(iou_thresholds, len(classes)))
    return frame


def _data_hash(ids: pd.Index, ground_truth: pd.DataFrame) -> str:
    """sha256 of the image ids and boxes, whatever their order."""
    rows = pd.util.hash_pandas_object(ground_truth[["image_id", "label", *BOX_COLUMNS]], index=False, categorize=True)
    digest = hashlib.sha256("\0".join(map(str, ids)).encode())
    digest.update(np.sort(rows.to_numpy()).tobytes())
    return digest.hexdigest()
