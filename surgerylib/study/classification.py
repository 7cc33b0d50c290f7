"""What the frozen CLIP says of the class, by itself: inside each ground truth box, and of the image as a whole.

Inside a box the class is named whose raw map responds most there: a classification of the place, without any threshold.
In the tables and sentences `seed` is that of the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..datasets import Dataset
from ..engine import present_pairs, truth_codes
from ..heatmaps import Setting, joint_names, maps_of
from ..intervals import basic_interval, bootstrap_weights, resampled_means, share_interval, with_interval
from ..matching import BOX_COLUMNS
from ..metrics import BootstrapResult, bootstrap_map, paired_difference
from ..words import PATHS
from .box_groups import boxes_by_image
from .quality import pixel_spans
from .tables import cells, plain

TOP = 3
PATH_NAMES = {"qk": "CLS of the stock model (QK path)", "vv": "CLS of the value-value path"}
_ACCURACIES = {
    "top1": "right class first",
    f"top{TOP}": f"among the first {TOP}",
    "class_mean": "first, mean over classes",
}
_SIDE = 224  # of the upsampled maps, as in `quality`


@dataclass(frozen=True)
class Classification:
    """Responses of a data set under one way to put the classes into words; G boxes, C classes, n images."""

    dataset: Dataset  # whose boxes and images
    responses: dict[Setting, np.ndarray]  # source -> float64 [G, C], mean of each class's map inside each box
    image_scores: dict[str, np.ndarray]  # path -> float32 [n, C], similarity of the last layer's CLS to each class

    @property
    def labels(self) -> np.ndarray:
        """[G] places of the boxes' classes."""
        return truth_codes(self.dataset)[1]

    def ranks(self, source: Setting) -> np.ndarray:
        """How many classes respond more than a box's own: int64 [G]; of equals the one listed first does."""
        responses, labels = self.responses[source], self.labels[:, None]
        own = np.take_along_axis(responses, labels, axis=1)
        before = np.arange(responses.shape[1]) < labels
        return ((responses > own) | ((responses == own) & before)).sum(axis=1)

    def accuracy(self, source: Setting, *, seed: int = 0) -> pd.DataFrame:
        """How often the right class responds most in a box, with 95 % intervals over images; `seed` of the resamples.

        Returns:
            Frame figure, value, low, high: `top1` and `top3`, shares of the boxes, and `class_mean`, the mean over the
            classes with boxes of their own top1, in which a class of few boxes counts as much as one of thousands.
        """
        ranks, n_boxes = self.ranks(source), len(self.dataset.boxes)
        frame = pd.DataFrame({"figure": ["top1", f"top{TOP}", "class_mean"]})
        if not n_boxes:
            return frame.assign(value=np.nan, low=np.nan, high=np.nan)
        label, labels = pd.factorize(self.labels, sort=True)
        image, images = pd.factorize(self.dataset.boxes["image_id"], sort=True)
        counted = np.zeros((3, len(images), len(labels)))
        np.add.at(counted, (slice(None), image, label), [ranks < 1, ranks < TOP, ranks >= 0])
        # row 0 is the data set itself
        drawn = np.vstack([np.ones((1, len(images))), bootstrap_weights(len(images), 1000, seed)])
        first, among, boxes = drawn @ counted  # each [1 + R, C]
        with np.errstate(invalid="ignore"):  # a resample may hold no box of a class
            shares = [first.sum(axis=1) / boxes.sum(axis=1), among.sum(axis=1) / boxes.sum(axis=1)]
            estimates = np.column_stack([*shares, np.nanmean(first / boxes, axis=1)])
        # a mean over classes is worth no more rows than its rare classes let it be
        rows = [n_boxes, n_boxes, len(labels) ** 2 / (1 / boxes[0]).sum()]
        low, high = share_interval(estimates[0], estimates[1:], np.array(rows), len(images))
        return frame.assign(value=estimates[0], low=low, high=high)

    def confusion(self, source: Setting) -> pd.DataFrame:
        """Boxes of the class of a row in which the class of a column responds most."""
        names = list(self.dataset.classes)
        pairs = self.labels * len(names) + self.responses[source].argmax(axis=1)
        return pd.DataFrame(np.bincount(pairs, minlength=len(names) ** 2).reshape(-1, len(names)), names, names)

    def image_level(self, path: str, *, interpolation: str, n_resamples: int = 1000, seed: int = 0) -> BootstrapResult:
        """Multi-label average precision of the images: for each class they are ranked by its CLS score (VOC).

        An image is a box that every image has: then detection's average precision is classification's.
        The CLS token is that of one of `PATHS`; the rest is as in `bootstrap_map`.
        """
        ids, classes = self.dataset.images["image_id"].to_numpy(object), np.array(self.dataset.classes, dtype=object)
        image, label = np.nonzero(present_pairs(self.dataset))
        truth = _whole_images(ids[image], classes[label])
        scores = self.image_scores[path].astype(np.float64)
        asked = _whole_images(np.repeat(ids, len(classes)), np.tile(classes, len(ids))).assign(score=scores.ravel())
        options = {"interpolation": interpolation, "n_resamples": n_resamples, "seed": seed}
        return bootstrap_map(asked, truth, image_ids=ids, iou_thresholds=[0.5], classes=list(classes), **options)


def classify(
    similarities: Iterable[np.ndarray], dataset: Dataset, grid: tuple[int, int], sources: Sequence[Setting]
) -> Classification:
    """What CLIP says of each box and image, from stored similarities.

    Args:
        similarities: shard by shard in the data set's order, as `Store.shards` gives them.
        dataset: the one that they were computed of.
        grid: the model's patches (h, w).
        sources: those with the same maps are looked at once.
    """
    rows_of = boxes_by_image(dataset)
    boxes = dataset.boxes[BOX_COLUMNS].to_numpy(np.float64)
    sizes = dataset.images[["width", "height"]].to_numpy().tolist()
    distinct = {source.maps_key: source for source in sources}
    found = {key: np.zeros((len(boxes), len(dataset.classes))) for key in distinct}
    scores = {path: np.zeros((len(dataset.images), len(dataset.classes)), np.float32) for path in PATHS}
    position = 0
    with tqdm(total=len(sizes), desc="responses inside the boxes", unit="image", delay=2, leave=False) as progress:
        for shard in similarities:
            stop = position + len(shard)
            for place, path in enumerate(PATHS):
                scores[path][position:stop] = shard[:, -1, place, :, 0]
            for key, source in distinct.items():
                stored = torch.from_numpy(np.array(shard[:, -source.layers :]))
                of_shard = maps_of(stored, grid, source.kind, similarity=source.similarity).numpy()
                for offset, maps in enumerate(of_shard):
                    rows = rows_of[position + offset]
                    found[key][rows] = box_responses(maps, boxes[rows], sizes[position + offset])
            progress.update(len(shard))
            position = stop
    return Classification(dataset, {source: found[source.maps_key] for source in sources}, scores)


def box_responses(maps: np.ndarray, boxes_xyxy: np.ndarray, image_size_wh: tuple[int, int]) -> np.ndarray:
    """Mean of each raw map [C, h, w] inside each box [G, 4], at 224 x 224: `quality`'s `inside_mean`, float64 [G, C].

    Bilinear upsampling is linear and goes along rows and columns apart, so the mean over a box is a weighted sum of
    the patches: no map is upsampled. Boxes are in pixels of the original image.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    x0, y0, x1, y1 = pixel_spans(boxes * _SIDE / np.tile(np.asarray(image_size_wh, dtype=np.float64), 2), _SIDE).T
    _, h, w = maps.shape
    return np.einsum("gh,chw,gw->gc", _mean_weights(h, y0, y1), maps, _mean_weights(w, x0, x1), optimize=True)


def accuracy_table(found: Classification, sources: Mapping[str, Setting], *, seed: int = 0) -> pd.DataFrame:
    """A row a kind: how often the right class responds most in a ground truth box; the last rows need no map."""
    rows = {}
    joint = joint_names(sources)
    for name, source in tqdm(joint.items(), desc="boxes named rightly", unit="kind", delay=2, leave=False):
        rows[name] = cells(found.accuracy(source, seed=seed).set_index("figure"))[list(_ACCURACIES)].tolist()
    n_classes = len(found.dataset.classes)
    chance = (1 / n_classes, min(TOP, n_classes) / n_classes, 1 / n_classes)
    rows["any class at random"] = [f"{share:.3f}" for share in chance]
    counts = found.dataset.boxes["label"].value_counts()
    if len(counts):
        rows[f"always {counts.index[0]}"] = [f"{counts.iloc[0] / counts.sum():.3f}", "", f"{1 / len(counts):.3f}"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(_ACCURACIES.values()))


def image_level_table(results: Mapping[str, BootstrapResult], found: Classification) -> pd.DataFrame:
    """A row a CLS token: mean over classes of the average precision with which a class's images are ranked."""
    rows = {PATH_NAMES[path]: cells(result.summary(), "map").iloc[0] for path, result in results.items()}
    pairs = found.dataset.boxes.drop_duplicates(["image_id", "label"])["label"].value_counts()
    share = (pairs / max(len(found.dataset.images), 1)).mean()
    in_any_order = "share of images with the class, mean (an AP in any order is somewhat higher)"
    rows[in_any_order] = "no boxes" if math.isnan(share) else f"{share:.3f}"
    return pd.DataFrame({"mean average precision": rows})


def prompt_figures(
    by_prompts: Mapping[str, Classification], source: Setting, *, reference: str, interpolation: str, seed: int = 0
) -> pd.DataFrame:
    """What several ways to put the classes into words (`by_prompts`: prompt set -> classification) are worth.

    All on the same images: `source` gives the maps that name the boxes, and `reference` is the prompt set that paired
    differences are taken to.

    Returns:
        Frame prompts, figure, value, low, high: the figures of `Classification.accuracy`, `image_map`, the
        image-level mAP of the stock CLS, and the paired differences to the reference (not for the reference itself):
        `top1_difference` of the share named rightly, `difference` of the image-level mAP.
    """
    bar = {"unit": "wording", "delay": 2, "leave": False}
    levels = {
        name: found.image_level("qk", interpolation=interpolation, seed=seed)
        for name, found in tqdm(by_prompts.items(), desc="images ranked by class", **bar)
    }
    parts = []
    for name, found in tqdm(by_prompts.items(), desc="boxes named rightly", **bar):
        level = levels[name].summary().rename(columns={"map": "value"})
        rows = [found.accuracy(source, seed=seed), level.assign(figure="image_map")]
        if name != reference and reference in by_prompts:
            right, theirs = (of.ranks(source) == 0 for of in (found, by_prompts[reference]))
            gained = (right.astype(np.float64) - theirs)[:, None]
            mean, samples, n_images = resampled_means(gained, found.dataset.boxes["image_id"], 1000, seed)
            low, high = basic_interval(mean, samples, n_images)
            rows.append(pd.DataFrame({"figure": "top1_difference", "value": mean, "low": low, "high": high}))
            difference = paired_difference(levels[name], levels[reference]).summary()
            rows.append(difference.rename(columns={"difference": "value"}).assign(figure="difference"))
        parts.append(pd.concat(rows).assign(prompts=name))
    return pd.concat(parts, ignore_index=True)[["prompts", "figure", "value", "low", "high"]]


def prompts_table(figures: pd.DataFrame, *, reference: str) -> pd.DataFrame:
    """`prompt_figures` for a reader: a row a prompt set."""
    minus = f"minus {reference} (paired)"
    titles = {"top1": _ACCURACIES["top1"], "top1_difference": f"right first, {minus}"}
    titles |= {**_ACCURACIES, "image_map": "image-level mAP", "difference": f"image-level, {minus}"}
    signed = figures["figure"].str.contains("difference")
    shown = figures.assign(cell=cells(figures, sign=True).where(signed, cells(figures)))
    found = shown.pivot_table(index="prompts", columns="figure", values="cell", aggfunc="first", sort=False)
    found = found[[figure for figure in titles if figure in found]].rename(columns=titles).fillna("–")
    return found.rename_axis(index=None, columns=None)


def main_confusions(confusion: pd.DataFrame) -> pd.DataFrame:
    """For each class the other class that responds most in most of its boxes; of equal ones the first by name.

    `confusion`: counts, rows the class, columns the class that responds most. Returns a frame label, other (None for
    none), boxes, share (NaN for a class without boxes).
    """
    rows = []
    for label, counts in confusion[sorted(confusion.columns)].iterrows():
        total, others = int(counts.sum()), counts.drop(label)
        most = int(others.max()) if len(others) else 0
        rows.append((label, str(others.idxmax()) if most else None, most, most / total if total else math.nan))
    return pd.DataFrame(rows, columns=["label", "other", "boxes", "share"])


def confusion_finding(confusion: pd.DataFrame) -> str:
    """The share of boxes named rightly, and the confusion of most boxes."""
    total = confusion.to_numpy().sum()
    if total == 0:
        return "No boxes to name"
    right = np.diag(confusion.to_numpy()).sum() / total
    said = f"The right class responds most in {100 * right:.0f} % of the boxes"
    worst = main_confusions(confusion).sort_values(["boxes", "label"], ascending=[False, True]).iloc[0]
    if isinstance(worst["other"], str):
        said += f"; mistaken most: {worst['label']} for {worst['other']} ({worst['boxes']:,} boxes)"
    return said


def classification_sentence(found: Classification, source: Setting, kind: str, *, seed: int = 0) -> str:
    """What CLIP's maps know of the class of a box, in one sentence, to stand beside the verdict."""
    figures = found.accuracy(source, seed=seed).set_index("figure")
    value, low, high = figures.loc["top1", ["value", "low", "high"]]
    if math.isnan(value):
        return "No box to name."
    top = figures.loc[f"top{TOP}", "value"]
    return (
        f"Asked for the class of a box instead ({kind} maps, all {len(found.dataset.classes)} classes), the frozen "
        f"CLIP puts the right one first in {with_interval(value, low, high)} of the {len(found.dataset.boxes):,} boxes "
        f"of all classes, among the first {TOP} in {top:.3f}."
    )


def classification_results(
    found: Classification, sources: Mapping[str, Setting], image_level: Mapping[str, BootstrapResult], *, seed: int
) -> dict[str, Any]:
    """CLIP's own classification as plain values for `evaluation_results.json`.

    `sources`: kind -> its maps; `image_level`: path -> its multi-label average precision.
    """
    # kinds with the same maps name the boxes alike: counted once
    of_key = {}
    for source in joint_names(sources).values():
        named = {label: plain(row[row > 0]) for label, row in found.confusion(source).iterrows()}
        accuracy = found.accuracy(source, seed=seed).set_index("figure")
        of_key[source.maps_key] = {"accuracy": plain(accuracy.to_dict("index")), "confusion": named}
    levels = {}
    for path, result in image_level.items():
        by_class = result.class_summary().set_index("label")[["ap", "low", "high"]]
        (level,) = plain(result.summary()[["map", "low", "high"]])
        levels[path] = level | {"by_class": plain(by_class.to_dict("index"))}
    return {
        "classification": {kind: of_key[source.maps_key] for kind, source in sources.items()},
        "image_level_map": levels,
    }


@lru_cache(maxsize=16)
def _running_weights(n_patches: int) -> np.ndarray:
    """float64 [S + 1, n]: what the first so many pixels of a line take of each patch, under bilinear upsampling."""
    of_pixel = cv2.resize(np.eye(n_patches, dtype=np.float32), (n_patches, _SIDE), interpolation=cv2.INTER_LINEAR)
    return np.vstack([np.zeros(n_patches), np.cumsum(of_pixel, axis=0, dtype=np.float64)])


def _mean_weights(n_patches: int, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """[G, n]: weights of the patches in the mean over pixels first to stop - 1 of a line."""
    running = _running_weights(n_patches)
    return (running[stop] - running[first]) / (stop - first)[:, None]


def _whole_images(ids: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Boxes that cover the unit square: one of each image and class named."""
    frame = pd.DataFrame({"image_id": ids, "label": labels}).astype("str")
    return frame.assign(xmin=0.0, ymin=0.0, xmax=1.0, ymax=1.0)
