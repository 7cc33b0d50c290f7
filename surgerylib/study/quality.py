"""How good raw class heatmaps are against ground-truth boxes, before any threshold is chosen.

One record is an (image, class) pair: the map of a class that is annotated in the image, against all its boxes. Maps are
judged at `working_size`² after `resize_map` (bilinear, half-pixel centres), boxes are scaled to working pixels. A pixel
is inside when its centre lies in a box of the class, min <= centre < max; along an axis where a box holds no centre it
takes the pixel that holds the box's middle (clipped into the image), so that no box vanishes. All others are outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import pandas as pd

from ..boxes import resize_map
from ..engine import in_processes, truth_codes
from ..errors import ParameterError, whole_number
from ..heatmaps import Setting
from ..intervals import basic_interval, bootstrap_weights, number
from ..matching import BOX_COLUMNS
from .box_groups import boxes_by_image
from .tables import cells

if TYPE_CHECKING:  # a worker process has no need of torch
    from ..engine import HeatmapStore

BOX_ACC_IOUS = (0.3, 0.5, 0.7)
SHARES = ("inverted", "pointing", "energy", "area")
FIGURES = ("inside_mean", "outside_mean", "inside_max", "map_min", "map_max", *SHARES)
ACCURACIES = (*(f"max_box_acc@{iou:g}" for iou in BOX_ACC_IOUS), "max_box_acc_v2")

# row of the quality table -> its figure
_SPREADS = {
    "mean inside (± sd)": "inside_mean",
    "mean outside (± sd)": "outside_mean",
    "maximum inside (± sd)": "inside_max",
}
_SHARES = {
    "inverted": "inverted",
    "pointing": "pointing",
    "energy inside": "energy",
    "area inside": "area",
    "MaxBoxAccV2": "max_box_acc_v2",
}
_PIECE = 16  # images a worker takes at a time
# what a worker takes at a time, some images: maps [n, C, h, w] of each setting; boxes [G, 4], labels [G], size of each
_Task = tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]]


class PairQuality(NamedTuple):
    """The map of one class annotated in one image; responses are raw similarities, at working size.

    A constant map has no peak and nothing to share out: its `pointing` and `energy` are NaN, `map_min` is `map_max`.
    Boxes that cover the whole image leave no outside: `outside_mean` and `inverted` are NaN.
    """

    class_index: int
    n_boxes: int
    inside_mean: float
    outside_mean: float
    inside_max: float
    map_min: float
    map_max: float
    inverted: float  # 1 where the inside's mean is lower than the outside's, else 0
    pointing: float  # 1 where the peak is inside, else 0
    energy: float  # share of the response, 0..1
    area: float  # share of the pixels that are inside, 0..1: what a flat map scores in `pointing` and `energy`
    best_iou: np.ndarray | None  # [T] at each CAM threshold; None unless the class has exactly one box


QUALITY_COLUMNS = ("image_id", "label", *PairQuality._fields[1:])


def image_quality(
    maps: np.ndarray,
    boxes_xyxy: np.ndarray,
    class_indices: Sequence[int] | np.ndarray,
    image_size_wh: tuple[int, int],
    *,
    working_size: int = 224,
    cam_thresholds: int = 100,
) -> list[PairQuality]:
    """The quality of the maps of one image and kind: a record for each class annotated in it.

    - Pointing game (Zhang et al. 2018, Top-down neural attention by excitation backprop, IJCV): a hit when the map's
      peak is inside. Without their tolerance of 15 pixels; of equal maxima the first in reading order is the peak.
    - Energy (the energy-based pointing game of Score-CAM, Wang et al. 2020, arXiv:1910.01279): the inside's share of
      the map's sum. Taken on the map minus its own minimum, because raw similarities carry an offset.
    - `best_iou`, for MaxBoxAccV2: the best IoU of any box around an external contour of the mask, at each CAM
      threshold k / T, k = 0 to T - 1, of the way from the map's minimum to its maximum. This min-max per map is part
      of the published metric and is done for it alone: no threshold elsewhere follows one. The mask is taken as it
      is, without morphology or least side. A constant map has no box: 0 throughout.

    Args:
        maps: float32 [C, h, w], raw, of the whole class list.
        boxes_xyxy, class_indices: [G, 4] pixels of the original image, and int [G], the place of each one's class.
        image_size_wh: width and height of the original image in pixels.
        working_size: side in pixels at which the maps are judged.
        cam_thresholds: number T of thresholds.

    Returns:
        Records in the order of class index; none for an image without boxes.

    Raises:
        ParameterError: a map that is not finite, or a number of thresholds below 1.
    """
    whole_number("cam_thresholds", cam_thresholds)
    indices = np.asarray(class_indices)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    boxes = boxes * working_size / np.tile(np.asarray(image_size_wh, dtype=np.float64), 2)
    return [
        _pair(int(index), resize_map(maps[index], working_size), boxes[indices == index], cam_thresholds)
        for index in np.unique(indices)
    ]


def quality_frame(
    image_ids: Iterable[str], qualities: Iterable[Sequence[PairQuality]], classes: Sequence[str]
) -> pd.DataFrame:
    """What `image_quality` gave of each image, for one kind, as a frame of `QUALITY_COLUMNS`, a row a pair."""
    rows = [
        (image_id, classes[record.class_index], *record[1:])
        for image_id, records in zip(image_ids, qualities, strict=True)
        for record in records
    ]
    frame = pd.DataFrame.from_records(rows, columns=list(QUALITY_COLUMNS))
    numbers = dict.fromkeys(FIGURES, "float64")
    return frame.astype({"image_id": "str", "label": "str", "n_boxes": "int64", **numbers, "best_iou": "object"})


def quality_summary(pairs: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The figures of one kind over all pairs, with 95 % bootstrap intervals over images.

    MaxBoxAccV2 (Choe et al. 2020, arXiv:2007.04178) says how good boxes are at the best single threshold: at a CAM
    threshold a share of the pairs has a box of IoU >= delta; for each delta the threshold that is best over the whole
    data set is taken, then the mean over the deltas `BOX_ACC_IOUS`. The threshold is chosen on the data that it is
    judged on, so the figure is an upper bound for one fixed threshold. The authors' code (clovaai/wsolevaluation)
    rounds maps to 8 bits and boxes to whole pixels, takes pixels > tau (here >=), counts the contours of holes too,
    cuts boxes at the last pixel, measures sides with + 1 (here xmax - xmin), and has 1000 thresholds, 100 here.

    In a resample (basic bootstrap) the pairs of an image stay together, and the best thresholds are taken anew. A share
    that is the same in every image has an interval without width. The order of the rows does not matter.

    Args:
        pairs: frame of `quality_frame`, of one kind; a selection of its rows (one class, say) is fine.
        n_resamples, seed: of the bootstrap.

    Returns:
        Frame with a row a figure, each of `FIGURES` and `ACCURACIES`:
        - figure; value: the mean over pairs, or the accuracy; low, high: NaN with fewer than two images
        - sd (over pairs, n - 1), minimum, maximum: over pairs; the similarity range is the minimum of `map_min` to the
          maximum of `map_max`. NaN for the accuracies, which have their best cam_threshold instead.
        - n_pairs, n_images: that count; n_left_out: pairs that do not, because the boxes cover the image
          (`outside_mean`, `inverted`), the map is constant (`pointing`, `energy`) or the class has more than one box
          (the accuracies).

    Raises:
        ParameterError: a pair occurs twice.
    """
    pairs = _sorted_pairs(pairs)
    frame, samples = _estimates(pairs, n_resamples, seed)
    frame["low"], frame["high"] = basic_interval(frame["value"].to_numpy(), samples, frame["n_images"].to_numpy())
    shares, ends = [*SHARES, *ACCURACIES], ["value", "low", "high"]
    frame.loc[shares, ends] = frame.loc[shares, ends].clip(0, 1)
    frame[["sd", "minimum", "maximum"]] = pairs[list(FIGURES)].agg(["std", "min", "max"]).T
    frame["n_left_out"] = len(pairs) - frame["n_pairs"]
    columns = [*ends, "sd", "minimum", "maximum", "cam_threshold", "n_pairs", "n_left_out", "n_images"]
    return frame[columns].rename_axis("figure").reset_index()


def quality_difference(
    pairs_a: pd.DataFrame, pairs_b: pd.DataFrame, *, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Figures of one kind minus another's on the same pairs and resamples: the images' own difficulty cancels out.

    Returns:
        Frame figure, difference, low, high; figures as in `quality_summary`.

    Raises:
        ParameterError: the two do not hold the same pairs.
    """
    a, b = _sorted_pairs(pairs_a), _sorted_pairs(pairs_b)
    keys = ["image_id", "label", "n_boxes"]
    if not a[keys].equals(b[keys]):
        raise ParameterError(
            f"not a paired comparison: {len(a)} and {len(b)} pairs that differ; judge both kinds on the same boxes"
        )
    (of_a, samples_a), (of_b, samples_b) = (_estimates(of, n_resamples, seed) for of in (a, b))
    difference, n_images = (of_a["value"] - of_b["value"]).to_numpy(), np.minimum(of_a["n_images"], of_b["n_images"])
    low, high = basic_interval(difference, samples_a - samples_b, n_images.to_numpy())
    return pd.DataFrame({"figure": of_a.index, "difference": difference, "low": low, "high": high})


def map_quality(
    store: HeatmapStore, settings: Mapping[str, Setting], *, cam_thresholds: int = 100, workers: int | None = None
) -> dict[str, pd.DataFrame]:
    """Every annotated (image, class) pair of a computed store under each setting's maps, see `image_quality`.

    Settings with the same maps are measured once. MaxBoxAccV2 is most of the work: `cam_thresholds` 1 where it is not
    asked for. `workers`: processes; None takes the CPU's cores.

    Returns:
        name -> frame of `QUALITY_COLUMNS`, a row a pair; the same object for the same maps.
    """
    data = store.dataset
    boxes, (_, label) = data.boxes[BOX_COLUMNS].to_numpy(np.float64), truth_codes(data)
    sizes_wh = data.images[["width", "height"]].itertuples(index=False, name=None)
    truth = [(boxes[rows], label[rows], wh) for rows, wh in zip(boxes_by_image(data), sizes_wh, strict=False)]
    distinct = {setting.maps_key: setting for setting in settings.values()}
    found: dict[tuple, list[list[PairQuality]]] = {key: [] for key in distinct}
    blocks = store.blocks(_PIECE)
    tasks = (([store.maps(s, *block) for s in distinct.values()], truth[slice(*block)]) for block in blocks)
    for of_settings in in_processes(
        partial(_quality_of_piece, cam_thresholds=cam_thresholds), tasks, workers=workers,
        sizes=[stop - start for start, stop in blocks], description="heatmap quality",
    ):  # fmt: skip
        for key, of_images in zip(distinct, of_settings, strict=True):
            found[key] += of_images
    image_ids = data.images["image_id"].tolist()
    frames = {key: quality_frame(image_ids, of_images, data.classes) for key, of_images in found.items()}
    return {name: frames[setting.maps_key] for name, setting in settings.items()}


def quality_by_kind(pairs: Mapping[str, pd.DataFrame], *, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`quality_summary` of each kind, with a column `kind`; kinds that share a frame are summarised once."""
    summaries = {id(of): quality_summary(of, n_resamples=n_resamples, seed=seed) for of in joint_pairs(pairs).values()}
    return pd.concat([summaries[id(of)].assign(kind=kind) for kind, of in pairs.items()], ignore_index=True)


def joint_pairs(pairs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Kinds that share a frame, because they have the same maps, under one name: `standard = vv_qk`."""
    distinct = {id(frame): frame for frame in pairs.values()}
    return {" = ".join(kind for kind, own in pairs.items() if own is of): of for of in distinct.values()}


def quality_table(quality: pd.DataFrame) -> pd.DataFrame:
    """`quality_by_kind` for a reader: a column a kind, a row a figure with what it needs (sd, interval, range).

    Kinds with the same figures stand in one column.
    """
    of_kinds = quality.set_index("figure").groupby("kind", sort=False)
    columns = pd.DataFrame({kind: _quality_column(of) for kind, of in of_kinds})
    alike = columns.T.groupby(list(columns.index), sort=False).groups
    return pd.DataFrame({" = ".join(kinds): columns[kinds[0]] for kinds in alike.values()})


def difference_column(pairs_a: pd.DataFrame, pairs_b: pd.DataFrame, *, seed: int = 0) -> pd.Series:
    """One kind's figures minus another's on the same images, for `quality_table`: `difference [low, high]` by row."""
    of = quality_difference(pairs_a, pairs_b, seed=seed).set_index("figure")
    figures = pd.Series(_SPREADS | _SHARES).drop("area inside")  # which is the boxes' alone
    known = of.loc[figures].set_axis(figures.index).dropna(subset="difference")
    return cells(known, "difference", sign=True)


def pixel_spans(boxes: np.ndarray, working_size: int) -> np.ndarray:
    """int [n, 4]: first column and row, and those behind the last, of the pixels of boxes [n, 4] in working pixels."""
    # pixel i has its centre at i + 0.5: the first at or after an edge is ceil(edge - 0.5)
    first = np.ceil(boxes[:, :2] - 0.5).clip(0, working_size)
    stop = np.ceil(boxes[:, 2:] - 0.5).clip(0, working_size)
    middle = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2).clip(0, working_size - 1)
    none = stop <= first
    return np.hstack([np.where(none, middle, first), np.where(none, middle + 1, stop)]).astype(int)


def _pair(index: int, resized: np.ndarray, boxes: np.ndarray, cam_thresholds: int) -> PairQuality:
    """The record of one map [S, S] and the boxes [n, 4] of its class in working pixels."""
    inside = np.zeros(resized.shape, dtype=bool)
    for x0, y0, x1, y1 in pixel_spans(boxes, len(resized)).tolist():
        inside[y0:y1, x0:x1] = True
    values = resized.astype(np.float64)  # float32 sums of 50,000 pixels would lose digits
    responses, others = values[inside], values[~inside]
    low, high, inside_mean = float(values.min()), float(values.max()), float(responses.mean())
    outside_mean = float(others.mean()) if others.size else np.nan
    constant = low == high
    return PairQuality(
        index,
        len(boxes),
        inside_mean,
        outside_mean,
        inside_max=float(responses.max()),
        map_min=low,
        map_max=high,
        inverted=float(inside_mean < outside_mean) if others.size else np.nan,
        pointing=np.nan if constant else float(inside.flat[values.argmax()]),
        energy=np.nan if constant else float((responses - low).sum() / (values - low).sum()),
        area=float(inside.mean()),
        best_iou=_best_iou(resized, boxes[0], cam_thresholds) if len(boxes) == 1 else None,
    )


def _best_iou(resized: np.ndarray, box: np.ndarray, cam_thresholds: int) -> np.ndarray:
    """[T] best IoU of `box` [4], in working pixels, with the boxes found at each threshold."""
    low, high = float(resized.min()), float(resized.max())
    if low == high:
        return np.zeros(cam_thresholds)
    # thresholds move to the map's scale, not the map to 0..1: in the map's own precision a tie stays a tie
    thresholds = (low + np.arange(cam_thresholds) / cam_thresholds * (high - low)).astype(resized.dtype)
    rects: list[tuple[int, int, int, int]] = []
    starts = []
    for threshold in thresholds:
        mask = (resized >= threshold).view(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        starts.append(len(rects))
        rects += map(cv2.boundingRect, contours)
    found = np.array(rects, dtype=np.float64)  # x, y, width, height
    sides = np.minimum(found[:, :2] + found[:, 2:], box[2:]) - np.maximum(found[:, :2], box[:2])
    intersection = sides.clip(min=0).prod(axis=1)
    union = found[:, 2:].prod(axis=1) + (box[2:] - box[:2]).prod() - intersection
    return np.maximum.reduceat(intersection / union, starts)  # every mask holds the maximum: no threshold is empty


def _sorted_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """By image and class, so that neither resamples nor rounding follow the order of the rows."""
    pairs = pairs.sort_values(["image_id", "label"], ignore_index=True)
    twice = pairs.duplicated(["image_id", "label"])
    if twice.any():
        image_id, label = pairs.loc[twice.idxmax(), ["image_id", "label"]]
        raise ParameterError(f"pairs holds {label!r} on image {image_id!r} twice; pass one kind at a time")
    return pairs


def _estimates(pairs: pd.DataFrame, n_resamples: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """value, cam_threshold (the lowest of the best), n_pairs, n_images of all F figures; values in resamples [R, F]."""
    image, ids = pd.factorize(pairs["image_id"])
    drawn = bootstrap_weights(len(ids), n_resamples, seed).astype(np.float64)
    # a resample changes only how often an image counts: sums by image serve all; row 0 is the data set itself
    weights = np.vstack([np.ones((1, len(ids))), drawn])

    def by_image(values: np.ndarray, of_image: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(ids), values.shape[1]))
        np.add.at(sums, of_image, values)
        return sums

    values = pairs[list(FIGURES)].to_numpy(np.float64)
    is_single = pairs["best_iou"].notna().to_numpy()
    best_iou = np.stack(pairs["best_iou"][is_single]) if is_single.any() else np.empty((0, 1))  # [P', T]
    counts = by_image(~np.isnan(values), image)
    n_single = by_image(is_single[:, None], image)
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing counts: NaN
        means = weights @ by_image(np.nan_to_num(values), image) / (weights @ counts)
        hits = [weights @ by_image(best_iou >= iou, image[is_single]) for iou in BOX_ACC_IOUS]
        accuracy = np.stack([hit / (weights @ n_single) for hit in hits])  # [D, 1 + R, T]
    best = accuracy.max(axis=2).T
    estimates = np.column_stack([means, best, best.mean(axis=1)])
    cam_thresholds = np.where(np.isnan(best[0]), np.nan, accuracy[:, 0].argmax(axis=1) / best_iou.shape[1])
    counts = np.hstack([counts, np.repeat(n_single, len(ACCURACIES), axis=1)])
    of = pd.DataFrame({"value": estimates[0]}, [*FIGURES, *ACCURACIES])
    of["cam_threshold"] = pd.Series(cam_thresholds, ACCURACIES[:-1])
    return of.assign(n_pairs=counts.sum(axis=0).astype(int), n_images=(counts > 0).sum(axis=0)), estimates[1:]


def _quality_column(of: pd.DataFrame) -> dict[str, str]:
    """`of`: one kind's figures by name."""
    sds = of["sd"].map(lambda sd: "" if math.isnan(sd) else f" ± {number(sd)}")
    spreads, shares = of["value"].map(number) + sds, cells(of).where(of["value"].notna(), "no such pair")
    return {
        "pairs": f"{of.loc['inside_mean', 'n_pairs']:,}",
        **{row: spreads[figure] for row, figure in _SPREADS.items()},
        "similarity range": f"{number(of.loc['map_min', 'minimum'])} to {number(of.loc['map_max', 'maximum'])}",
        **{row: shares[figure] for row, figure in _SHARES.items()},
        "area inside": f"{of.loc['area', 'value']:.3f}",
    }


def _quality_of_piece(task: _Task, cam_thresholds: int) -> list[list[list[PairQuality]]]:
    """[setting][image][pair]."""
    of_settings, truth = task
    judged = partial(image_quality, cam_thresholds=cam_thresholds)
    return [[judged(of_image, *own) for of_image, own in zip(maps, truth, strict=True)] for maps in of_settings]
