"""Which images to look at, and what was found on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..boxes import extract_many
from ..datasets import read_image
from ..engine import HeatmapStore
from ..heatmaps import Setting
from ..matching import BOX_COLUMNS
from ..words import ALL, SEEN, UNSEEN


def example_pairs(ground_truth: pd.DataFrame, image_ids: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Up to `count` (image, class) pairs to look at: as many different classes as there are, images in their order."""
    pairs = ground_truth.groupby(["image_id", "label"], sort=False).size().reset_index(name="boxes")
    order = {image_id: position for position, image_id in enumerate(image_ids)}
    pairs = pairs.sort_values("image_id", key=lambda ids: ids.map(order), kind="stable")
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count and len(pairs):
        # one image never twice and no class again before all have been shown
        pick = pairs.drop_duplicates("label").drop_duplicates("image_id").head(count - len(chosen))
        chosen += list(pick[["image_id", "label"]].itertuples(index=False, name=None))
        pairs = pairs[~pairs["image_id"].isin(pick["image_id"])]
    return chosen


class Example(NamedTuple):
    """One class on one image."""

    image: np.ndarray  # uint8 RGB [H, W, 3]
    title: str
    truth: pd.DataFrame  # boxes of the class
    maps: Mapping[str, np.ndarray]  # state -> [h, w]
    found: Mapping[str, pd.DataFrame]  # state -> boxes


def examples(
    store: HeatmapStore, states: Mapping[str, Setting], groups: Mapping[str, Sequence[str]], *, count: int
) -> list[Example]:
    """Up to `count` images before and after: classes of each group in turn, and last one that is not in the image.

    The absent class is the one whose map was highest before, on the first image shown: the worst of its false boxes.
    `store` is computed with the adapter's maps, `states` are of one kind, and `groups` of `adaptation.class_groups`.
    """
    data = store.dataset
    ids = data.images["image_id"].tolist()
    names = [name for name in (SEEN, UNSEEN) if name in groups] or [ALL]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < max(count - 1, min(count, 1)):
        turn = len(pairs) % len(names)
        shown_ids, shown_labels = ([pair[place] for pair in pairs] for place in (0, 1))
        fresh = data.boxes[~data.boxes["image_id"].isin(shown_ids) & ~data.boxes["label"].isin(shown_labels)]
        # of a group without any more, the other's
        by_group = (fresh[fresh["label"].isin(groups[name])] for name in names[turn:] + names[:turn])
        found = next((own for boxes in by_group if (own := example_pairs(boxes, ids, 1))), [])
        if not found:
            break
        pairs += found
    if pairs and count > 1:
        image_id = pairs[0][0]
        before = store.maps(states["before"], ids.index(image_id))[0].max(axis=(1, 2))
        present = set(data.boxes.loc[data.boxes["image_id"] == image_id, "label"])
        absent = [place for place, label in enumerate(data.classes) if label not in present]
        if absent:
            pairs.append((image_id, data.classes[max(absent, key=lambda place: before[place])]))
    return [_example(store, states, ids.index(image_id), label) for image_id, label in pairs]


def _example(store: HeatmapStore, states: Mapping[str, Setting], position: int, label: str) -> Example:
    data = store.dataset
    row = data.images.iloc[position]
    maps, found = {}, {}
    for state, setting in states.items():
        maps[state] = store.maps(setting, position)[0, data.classes.index(label)]
        (cut,) = extract_many(maps[state], (row["width"], row["height"]), [setting])
        found[state] = pd.DataFrame(cut.boxes, columns=[*BOX_COLUMNS, "score"])
    of_pair = (data.boxes["image_id"] == row["image_id"]) & (data.boxes["label"] == label)
    return Example(read_image(row["path"]), f"{label} on {row['image_id']}", data.boxes[of_pair], maps, found)
