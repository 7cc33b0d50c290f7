"""From frames to matched detections: every check on the input, integer codes for names, sorting and matching."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd

from .curves import INTERPOLATIONS
from .errors import ParameterError
from .matching import match_coco, match_voc
from .words import check_classes

BOX_COLUMNS = ["xmin", "ymin", "xmax", "ymax"]


class Evaluation(NamedTuple):
    """One matching, all that average precision needs; detections are sorted by class, then by score."""

    classes: tuple[str, ...]
    iou_thresholds: np.ndarray  # [T]
    interpolation: str
    is_tp: np.ndarray  # bool [T, N]
    class_bounds: np.ndarray  # [C + 1]: class c holds detections bounds[c] to bounds[c + 1]
    images: pd.Index  # the ids behind the image codes
    image_of_detection: np.ndarray  # [N] codes
    image_of_truth: np.ndarray  # [G] codes
    class_of_truth: np.ndarray  # [G]
    n_ground_truth: np.ndarray  # [C]


def evaluate(
    detections: pd.DataFrame,
    ground_truth: pd.DataFrame,
    iou_thresholds: Sequence[float],
    interpolation: str,
    max_detections: int | None,
    classes: Sequence[str] | None,
) -> Evaluation:
    """Checks the frames and arguments of `average_precision`, and matches.

    Raises:
        ParameterError: as documented there.
    """
    thresholds = checked_thresholds(iou_thresholds)
    check_interpolation(interpolation)
    if max_detections is not None and (
        isinstance(max_detections, bool) or not isinstance(max_detections, int | np.integer) or max_detections < 1
    ):
        raise ParameterError(f"max_detections is {max_detections!r}; it must be a whole number of at least 1, or None")
    listed = _checked_classes(classes)
    boxes = _checked_numbers(detections, "detections", [*BOX_COLUMNS, "score"])
    truth = _checked_numbers(ground_truth, "ground_truth", BOX_COLUMNS)
    image, truth_image, images = _common_codes(detections, ground_truth, "image_id")
    label, truth_label, labels = _common_codes(detections, ground_truth, "label")

    names = tuple(dict.fromkeys([*listed, *sorted(labels)]))
    if not pd.api.types.is_numeric_dtype(labels):
        # two spellings of one class would match nowhere, and both would score 0 without a word
        check_classes(names)
    place = pd.Index(names).get_indexer(labels)
    label, truth_label = place[label], place[truth_label]

    order = np.argsort(-boxes[:, 4], kind="stable")
    if max_detections is not None:
        order = _best_of_group(order, (image * len(names) + label)[order], max_detections)
    order = order[np.argsort(label[order], kind="stable")]
    boxes, image, label = boxes[order, :4], image[order], label[order]

    match = match_coco if interpolation == "coco101" else match_voc
    n_classes = len(names)
    is_tp = match(boxes, image * n_classes + label, truth, truth_image * n_classes + truth_label, thresholds)
    return Evaluation(
        classes=names,
        iou_thresholds=thresholds,
        interpolation=interpolation,
        is_tp=is_tp,
        class_bounds=np.searchsorted(label, np.arange(n_classes + 1)),
        images=images,
        image_of_detection=image,
        image_of_truth=truth_image,
        class_of_truth=truth_label,
        n_ground_truth=np.bincount(truth_label, minlength=n_classes),
    )


def check_interpolation(interpolation: str) -> None:
    """Raises a `ParameterError` that lists the interpolations unless this is one."""
    if not isinstance(interpolation, str) or interpolation not in INTERPOLATIONS:
        raise ParameterError(f"interpolation is {interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}")


def checked_thresholds(iou_thresholds: Sequence[float]) -> np.ndarray:
    """IoU thresholds as float64 [T]; a `ParameterError` unless there are some, each in (0, 1] and named once."""
    try:
        thresholds = np.atleast_1d(np.array(iou_thresholds))
        # text would convert without a word, true would be 1, and a table one long list
        numeric = thresholds.dtype.kind in "iuf" and thresholds.ndim == 1
        thresholds = thresholds.astype(np.float64) if numeric else np.empty(0)
    except (TypeError, ValueError):
        thresholds = np.empty(0)
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ParameterError(f"iou_thresholds is {iou_thresholds!r}; give one or more numbers above 0 and at most 1")
    if len(np.unique(thresholds)) < len(thresholds):
        raise ParameterError(f"iou_thresholds is {iou_thresholds!r}; name each threshold once")
    return thresholds


def _checked_numbers(frame: pd.DataFrame, name: str, numbers: list[str]) -> np.ndarray:
    """The number columns as float64 [N, len(numbers)], after every check on the frame."""
    if not isinstance(frame, pd.DataFrame):
        raise ParameterError(f"{name} is a {type(frame).__name__}; it must be a pandas DataFrame")
    held = list(frame.columns)
    missing = [column for column in ["image_id", "label", *numbers] if column not in held]
    if missing:
        raise ParameterError(f"{name} lacks the column {', '.join(missing)}; it has {', '.join(map(str, held))}")
    repeated = [column for column in ["image_id", "label", *numbers] if held.count(column) > 1]
    if repeated:
        raise ParameterError(f"{name} has the column {repeated[0]} twice; leave one")
    for column in ("image_id", "label"):
        if frame[column].isna().any():
            row = int(np.argmax(frame[column].isna()))
            raise ParameterError(f"{name} has no {column} in row {row}; give every box one")
    try:
        # the type of an empty column says nothing
        if len(frame) and not all(_holds_numbers(frame[column]) for column in numbers):
            raise TypeError("text, times or complex numbers, which would convert without a word")
        values = frame[numbers].to_numpy(np.float64)
    except (TypeError, ValueError, OverflowError):
        kinds = ", ".join(f"{column} {frame[column].dtype}" for column in numbers)
        raise ParameterError(f"{name} has columns that are not numbers ({kinds}); convert them") from None
    bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad_rows):
        seen = dict(zip(numbers, values[bad_rows[0]].tolist(), strict=True))
        raise ParameterError(f"{name} row {bad_rows[0]} is {seen}; every number must be finite: drop or mend such rows")
    bad_rows = np.flatnonzero((values[:, 2:4] < values[:, :2]).any(axis=1))
    if len(bad_rows):
        seen = dict(zip(BOX_COLUMNS, values[bad_rows[0], :4].tolist(), strict=True))
        raise ParameterError(f"{name} row {bad_rows[0]} is {seen}; a box needs xmin <= xmax and ymin <= ymax")
    return values


def _holds_numbers(column: pd.Series) -> bool:
    if pd.api.types.is_object_dtype(column):
        return all(isinstance(value, Real | Decimal) for value in column)
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)


def _checked_classes(classes: Sequence[str] | None) -> tuple[str, ...]:
    try:
        listed = () if classes is None else tuple(dict.fromkeys(classes))
    except TypeError:  # not a list, or one of lists
        listed = None
    if listed is None or isinstance(classes, str | bytes):
        raise ParameterError(f"classes is {classes!r}; give a list of class names, or None")
    return listed


def check_names(column: str, values: pd.Index) -> None:
    """Raises a `ParameterError` unless these are all text or all numbers, so that they can be told apart and sorted."""
    kind = pd.api.types.infer_dtype(values, skipna=False)
    if kind not in ("string", "integer", "floating", "mixed-integer-float", "boolean", "empty"):
        raise ParameterError(f"{column} holds {kind} values; make all of them text, or all of them numbers")


def _common_codes(
    detections: pd.DataFrame, ground_truth: pd.DataFrame, column: str
) -> tuple[np.ndarray, np.ndarray, pd.Index]:
    """Integer codes of a column of both frames, and the values behind them."""
    both = [frame[column] for frame in (detections, ground_truth)]
    both = [s.astype(s.cat.categories.dtype) if isinstance(s.dtype, pd.CategoricalDtype) else s for s in both]
    numeric = [pd.api.types.is_numeric_dtype(s) for s in both]
    if all(len(s) for s in both) and numeric[0] != numeric[1]:
        # 7 and '7' would match nowhere, and every figure would be 0 without a word
        kinds = f"{both[0].dtype} in detections and {both[1].dtype} in ground_truth"
        raise ParameterError(f"{column} is {kinds}; make both text or both numbers")
    together = pd.concat([s for s in both if len(s)] or both[:1], ignore_index=True)
    try:
        codes, values = pd.factorize(together)
    except TypeError:  # lists, sets
        raise ParameterError(f"{column} holds values that cannot be compared; make all of them text") from None
    check_names(column, pd.Index(values))
    return codes[: len(detections)], codes[len(detections) :], pd.Index(values)


def _best_of_group(order: np.ndarray, group: np.ndarray, max_detections: int) -> np.ndarray:
    """Leaves the first `max_detections` of each group; `order` is by score, `group` the codes in that order."""
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    sizes = np.diff(starts, append=len(group))
    keep = np.zeros(len(order), dtype=bool)
    keep[by_group] = np.arange(len(order)) - np.repeat(starts, sizes) < max_detections
    return order[keep]
