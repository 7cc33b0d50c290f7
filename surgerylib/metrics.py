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

from .errors import ParameterError, whole_number
from .intervals import degrees_of_freedom, half_samples, jackknife_interval, number
from .matching import BOX_COLUMNS, Matches, check_names, match

IOU_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
# numbers worked on at a time, per thread: few enough for the cache, enough that threads don't wait for each other
_BLOCK = 1 << 19


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
        interpolation: one of `matching.INTERPOLATIONS`.
        max_detections: only so many detections of a class in an image, those with the highest scores (COCO's maxDets).
        classes: also listed, besides every label that occurs.

    Returns:
        Frame label, iou_threshold, ap, n_ground_truth, n_detections, a row for each class and threshold. A class
        without ground truth has ap NaN; one with ground truth but no detections has 0.

    Raises:
        ParameterError: a column is missing, a score or box is not a finite number, an argument is out of range.
    """
    run = match(detections, ground_truth, iou_thresholds, interpolation, max_detections, classes)
    ap = _ap_of_parts(run, np.ones((1, len(run.images)), dtype=bool), interpolation)[0, 0]
    counts = {"n_ground_truth": run.n_ground_truth[:, None], "n_detections": np.diff(run.class_bounds)[:, None]}
    return _class_frame(run.classes, run.iou_thresholds, ap=ap, **counts)


@dataclass(frozen=True)
class BootstrapResult:
    """Average precision, or its difference between two results: R half-samples, C classes, T thresholds.

    The 95 % intervals (`intervals.jackknife_interval`) are for what other sets of as many images give on average; very
    many images give less: `bias_note`. A class with boxes in fewer than two images has none; that of a class with AP
    exactly 0 or 1 is a point, which says nothing.

    Simulated once for 50 to 500 images, 3 and 20 classes, 300 sets of each (tests/slow/test_interval_coverage.py draws
    anew and holds a bound for part of it), they held mAP of 0.05 to 0.8 in 92 to 98 % of the sets, and paired
    differences in 92 to 100 %. Less often: mAP above 0.8 of 50 images, 86 to 95 %; `11point` of 3 classes with mAP
    below 0.12, where the level at recall 0 hangs on the first detections, 86 to 95 % (below 0.05 78 to 92 %,
    differences 87 to 99 %, `area` 91 to 97 %), and differences of 20 classes below 0.05, 90 % (of 1,000).
    """

    classes: tuple[str, ...]  # [C]; one without ground truth has NaN throughout
    iou_thresholds: tuple[float, ...]  # [T]
    interpolation: str  # one of `matching.INTERPOLATIONS`
    n_images: int  # evaluated
    class_images: np.ndarray  # [C] how many of them hold ground truth of the class
    map_degrees: float  # of freedom of the spread of `map`: few where a class is in few images
    seed: int  # of the half-samples
    ap: np.ndarray  # [C, T] point estimates, those of `average_precision`, or their differences
    ap_samples: np.ndarray  # [R, C, T] the same in each half-sample, NaN where it holds no ground truth of the class
    map: np.ndarray  # [T] mean of `ap` over classes with ground truth
    map_samples: np.ndarray  # [R, T] the same in each half-sample, over the classes that it has ground truth of
    data_hash: str  # of image ids and ground truth: what two results must share to be compared
    is_difference: bool = False  # what `paired_difference` gave: values lie in [-1, 1]

    def summary(self) -> pd.DataFrame:
        """Frame iou_threshold, map, low, high; of a difference: difference, low, high, excludes_zero (the interval)."""
        columns = self._columns("map", self.map, self.map_samples, self.map_degrees)
        return pd.DataFrame({"iou_threshold": self.iou_thresholds, **columns})

    def class_summary(self) -> pd.DataFrame:
        """Frame label, iou_threshold, ap, low, high, a row a class and threshold; of a difference as in `summary`."""
        degrees = np.maximum(self.class_images - 1, 0)[:, None]
        columns = self._columns("ap", self.ap, self.ap_samples, degrees)
        return _class_frame(self.classes, self.iou_thresholds, **columns)

    def mean_over_thresholds(self) -> tuple[float, float, float]:
        """mAP averaged over the IoU thresholds, with its own interval: value, low, high."""
        columns = self._columns("map", self.map.mean(), self.map_samples.mean(axis=1), self.map_degrees)
        return tuple(float(end) for end in list(columns.values())[:3])

    def bias_note(self, of: str = "") -> str:
        """One sentence where half-samples read high by more than half an interval; else, and of a difference, "".

        Their excess is what is left of the bias if it falls as 1 / images, and less if it falls more slowly.
        """
        table, known = self.summary(), ~np.isnan(self.map_samples)
        excess = self.map_samples.sum(axis=0, where=known) / np.maximum(known.sum(axis=0), 1) - self.map
        beyond = np.where(excess > (table["high"] - table["low"]) / 2, excess, 0)
        if self.is_difference or not beyond.any():
            return ""
        worst = beyond.argmax()
        return (
            f"Average precision of few images reads high against that of very many: on half of these {self.n_images:,} "
            f"mAP@{self.iou_thresholds[worst]:.2f}{of} reads {number(beyond[worst])} higher, more than half its "
            "interval's width, so on very many it would read lower by about as much or more."
        )

    def without_classes(self) -> BootstrapResult:
        """The same without the figures of single classes, whose samples take twenty times the memory of the rest."""
        return self._with_rows([])

    def of_classes(self, labels: Sequence[str]) -> BootstrapResult:
        """The same of some classes alone: the mean over them, in the same half-samples.

        Raises:
            ParameterError: a class that was not evaluated, or whose figures were left out (`without_classes`).
        """
        if strangers := [label for label in labels if label not in self.classes]:
            known = ", ".join(map(str, self.classes))
            raise ParameterError(f"there are no figures of {strangers[0]!r}, only of {known}; name those")
        wanted = set(labels)
        chosen = self._with_rows([place for place, label in enumerate(self.classes) if label in wanted])
        return replace(
            chosen,
            map_degrees=degrees_of_freedom(chosen.class_images),
            map=_mean_over_classes(chosen.ap),
            map_samples=_mean_over_classes(chosen.ap_samples),
            data_hash=hashlib.sha256(repr((self.data_hash, chosen.classes)).encode()).hexdigest(),
        )

    def _with_rows(self, rows: list[int]) -> BootstrapResult:
        """The figures of these classes, in copies; those of all together stay."""
        classes, images = tuple(self.classes[row] for row in rows), self.class_images[rows]
        return replace(
            self, classes=classes, class_images=images, ap=self.ap[rows], ap_samples=self.ap_samples[:, rows]
        )

    def _columns(
        self, name: str, value: np.ndarray, samples: np.ndarray, degrees: np.ndarray | float
    ) -> dict[str, np.ndarray]:
        low, high = jackknife_interval(value, samples, degrees, least=-1 if self.is_difference else 0)
        if not self.is_difference:
            return {name: value, "low": low, "high": high}
        return {"difference": value, "low": low, "high": high, "excludes_zero": (low > 0) | (high < 0)}


def bootstrap_map(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    *,
    image_ids: Iterable[str],
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    interpolation: str = "11point",
    classes: Sequence[str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> BootstrapResult:
    """Draws half of the images, without replacement, and evaluates average precision anew each time.

    Detections are matched once: matching stays inside an image, so a half-sample only changes which images count.
    The result does not depend on the order of `image_ids`, nor on the number of threads.

    Args:
        detections, ground_truth: as for `average_precision`, and so are the arguments not named here.
        image_ids: all images evaluated, those without boxes or detections too, each once.
        n_resamples: number of half-samples R; the first half of them leaves what the second takes.
        seed: of the numpy Generator that draws them; the same ids and seed give the same half-samples.

    Raises:
        ParameterError: as `average_precision`; an image id is repeated; a detection or box is on another image.
    """
    n_resamples, seed = whole_number("n_resamples", n_resamples), whole_number("seed", seed, 0)
    run = match(detections, ground_truth, iou_thresholds, interpolation, classes=classes)
    ids = _checked_ids(image_ids, run.images)
    place = ids.get_indexer(run.images)
    place_of = {name: place[getattr(run, name)] for name in ("image_of_detection", "image_of_truth")}
    run = run._replace(images=ids, **place_of)
    with_boxes = np.unique(run.class_of_truth * len(ids) + run.image_of_truth)
    class_images = np.bincount(with_boxes // max(len(ids), 1), minlength=len(run.classes))
    parts = np.vstack([np.ones(len(ids), dtype=bool), half_samples(len(ids), -(-n_resamples // 2), seed)])
    of_parts = _ap_of_parts(run, parts, interpolation)
    ap, ap_samples = of_parts[0, 0], np.concatenate(of_parts[:, 1:])[:n_resamples]
    return BootstrapResult(
        classes=run.classes,
        iou_thresholds=tuple(run.iou_thresholds.tolist()),
        interpolation=interpolation,
        n_images=len(ids),
        class_images=class_images,
        map_degrees=degrees_of_freedom(class_images),
        seed=seed,
        ap=ap,
        ap_samples=ap_samples,
        map=_mean_over_classes(ap),
        map_samples=_mean_over_classes(ap_samples),
        data_hash=_data_hash(ids, ground_truth),
    )


def paired_difference(result_a: BootstrapResult, result_b: BootstrapResult) -> BootstrapResult:
    """`result_a` minus `result_b`, of classes in both, by half-samples: the images' own difficulty cancels out.

    Raises:
        ParameterError: the two differ in images, ground truth, thresholds, interpolation, seed or half-samples.
    """
    own, other = (
        {"images or ground truth": of.data_hash[:12], "IoU thresholds": of.iou_thresholds, "seed": of.seed,
         "interpolation": of.interpolation, "number of resamples": len(of.map_samples)}
        for of in (result_a, result_b)
    )  # fmt: skip
    for what, a in own.items():
        if a != (b := other[what]):
            raise ParameterError(f"not a paired comparison: the {what} differ ({a} and {b}); evaluate both alike")
    both = [name for name in result_a.classes if name in result_b.classes]
    a, b = (result._with_rows([result.classes.index(name) for name in both]) for result in (result_a, result_b))
    differences = {name: getattr(a, name) - getattr(b, name) for name in ("ap", "ap_samples", "map", "map_samples")}
    return replace(a, **differences, is_difference=True)


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
        what = f"{len(strangers)} images with detections or boxes are not in image_ids, {strangers[0]!r} for one"
        raise ParameterError(f"{what}; give all images that were evaluated")
    return ids.sort_values()


def _ap_of_parts(run: Matches, parts: np.ndarray, interpolation: str) -> np.ndarray:
    """AP on P parts of the images, bool [P, I], and on the images that each leaves: [2, P, C, T]."""
    by_image = np.zeros((len(run.images), len(run.classes)))
    np.add.at(by_image, (run.image_of_truth, run.class_of_truth), 1)
    in_part = np.rint(parts.astype(np.float64) @ by_image).astype(np.int64)
    n_truth = np.stack([in_part, run.n_ground_truth - in_part])  # [2, P, C]
    ap = np.empty((*n_truth.shape, len(run.iou_thresholds)))

    def work(c: int, images: np.ndarray, places: np.ndarray, bounds: np.ndarray, block: slice) -> None:
        is_held = np.take(parts[block], images, axis=1)  # [P, n]
        # how many detections of the part stand here or above; that tells how many of the others do
        rank = np.take(np.cumsum(is_held, axis=1, dtype=np.uint32), places, axis=1)  # [P, F]
        is_held = np.take(is_held, places, axis=1)
        for side, true, its_rank in ((0, is_held, rank), (1, ~is_held, places + 1 - rank)):
            ap[side, block, c] = _class_ap(true, its_rank, bounds, n_truth[side, block, c], interpolation)

    # numpy lets go of the interpreter lock in these array operations
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = []
        for c, (low, high) in enumerate(pairwise(run.class_bounds)):
            # between two true positives precision only falls: their places are enough
            threshold_index, places = np.nonzero(run.is_tp[:, low:high])
            bounds = np.searchsorted(threshold_index, np.arange(len(run.is_tp) + 1))
            step = max(1, _BLOCK // max(1, len(places), high - low))
            for start in range(0, len(parts), step):
                block = slice(start, start + step)
                running.append(pool.submit(work, c, run.image_of_detection[low:high], places, bounds, block))
    for task in running:
        task.result()
    return ap


def _class_ap(
    is_held: np.ndarray, rank: np.ndarray, bounds: np.ndarray, n_truth: np.ndarray, interpolation: str
) -> np.ndarray:
    """AP of one class on S sets of images: [S, T], NaN where a set has no ground truth.

    Of the true positives on all images, threshold by threshold (`bounds` [T + 1]), best score first: `is_held` [S, F]
    says which are in a set, `rank` [S, F] where they stand there. `n_truth` [S] boxes are in a set.
    """
    # the curves of all sets lie end to end: curve (s, t) is [start, end) of what is held
    held = np.flatnonzero(is_held)
    offsets = np.searchsorted(held, np.arange(len(is_held))[:, None] * is_held.shape[1] + bounds)  # [S, T + 1]
    start, end = offsets[:, :-1], offsets[:, 1:]
    precision = np.arange(1.0, len(held) + 2)
    precision[:-1] -= np.repeat(start.ravel().astype(np.float64), (end - start).ravel())
    precision[:-1] /= np.take(rank, held)
    precision[-1] = 0  # which an end can point at
    if interpolation == "area":
        envelope = np.zeros(is_held.shape)
        np.put(envelope, held, precision[:-1])
        # a running maximum from the end; a step of 2 keeps it from one curve to the next, and costs the last bits
        step = np.repeat(2.0 * np.arange(len(bounds) - 1)[::-1], np.diff(bounds))
        envelope = np.maximum.accumulate((envelope + step)[:, ::-1], axis=1)[:, ::-1] - step
        shares = np.append(np.take(envelope, held), 0.0)
        area = np.where(end > start, np.add.reduceat(shares, start.ravel()).reshape(start.shape), 0.0)
        ap = area / np.maximum(n_truth, 1)[:, None]
    else:
        needed = _needed(n_truth, interpolation)[:, None, :]  # [S, 1, levels]
        is_reached = needed <= (end - start)[..., None]  # [S, T, levels]
        # best precision from each level up to the next, the last up to the curve's end; then from each level on
        between = np.where(is_reached, start[..., None] + needed - 1, end[..., None])
        between = np.concatenate([between, end[..., None]], axis=-1)
        best = np.maximum.reduceat(precision, between.ravel()).reshape(between.shape)[..., :-1]
        ap = np.maximum.accumulate(np.where(is_reached, best, 0.0)[..., ::-1], axis=-1).mean(axis=-1)
    return np.where(n_truth[:, None] > 0, ap, np.nan)


def _needed(n_truth: np.ndarray, interpolation: str) -> np.ndarray:
    """How many true positives reach each recall level: [R, levels], at least 1."""
    n_truth = np.maximum(n_truth, 1).astype(np.int64)[:, None]
    if interpolation == "11point":
        needed = -(-np.arange(11) * n_truth // 10)
    else:
        # pycocotools compares in floating point, where 7 of 100 does not reach 0.07; so does this
        recall = np.linspace(0.0, 1.0, 101)
        needed = np.ceil(recall * n_truth).astype(np.int64)
        needed -= (needed - 1) / n_truth >= recall
        needed += needed / n_truth < recall
    return np.maximum(needed, 1)


def _mean_over_classes(ap: np.ndarray) -> np.ndarray:
    """[..., C, T] -> [..., T]: over the classes that are not NaN; NaN where all are."""
    known = ~np.isnan(ap)
    with np.errstate(invalid="ignore"):
        return np.where(known, ap, 0.0).sum(axis=-2) / known.sum(axis=-2)


def _class_frame(classes: Sequence[str], iou_thresholds: Sequence[float], **columns: np.ndarray) -> pd.DataFrame:
    """A row for each class and threshold; each column is [C, T], or [C, 1]."""
    names = pd.Series(np.repeat(np.array(classes, dtype=object), len(iou_thresholds))).infer_objects()
    shape = len(classes), len(iou_thresholds)
    values = {name: np.broadcast_to(column, shape).ravel() for name, column in columns.items()}
    return pd.DataFrame({"label": names, "iou_threshold": np.tile(iou_thresholds, len(classes)), **values})


def _data_hash(ids: pd.Index, ground_truth: pd.DataFrame) -> str:
    """sha256 of the image ids and boxes, whatever their order."""
    rows = pd.util.hash_pandas_object(ground_truth[["image_id", "label", *BOX_COLUMNS]], index=False, categorize=True)
    digest = hashlib.sha256("\0".join(map(str, ids)).encode())
    digest.update(np.sort(rows.to_numpy()).tobytes())
    return digest.hexdigest()
