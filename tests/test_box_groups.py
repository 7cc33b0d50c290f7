from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from surgerylib.datasets import Dataset
from surgerylib.engine.localizer_training import summarise
from surgerylib.study.box_groups import GROUPINGS, box_groups, box_sizes
from surgerylib.study.head_evaluation import by_class


def dataset_of(boxes: list[tuple], sizes: list[tuple[str, int, int]]) -> Dataset:
    images = pd.DataFrame(sizes, columns=["image_id", "width", "height"]).assign(path="")
    frame = pd.DataFrame(boxes, columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"])
    return Dataset("d", Path("d"), "test", "DIOR", images, frame, ("ship", "dam"), pd.DataFrame(), 0)


def test_groups_by_hand():
    boxes = [
        ("a", "ship", 0, 0, 31, 33),  # 1023 px, below 32²; of a 7 x 7 grid on 800 x 800: 0.08 patches; 1.06 : 1
        ("a", "dam", 0, 0, 32, 32),  # 1024 px is medium
        ("a", "dam", 0, 0, 96, 96),  # 9216 px is large; 0.71 patches
        ("a", "dam", 0, 0, 400, 100),  # 3.06 patches; 4 : 1
        ("b", "ship", 0, 0, 400, 200),  # the whole of a 400 x 200 image is 49 patches; 2 : 1
    ]
    data = dataset_of(boxes, [("a", 800, 800), ("b", 400, 200), ("c", 10, 10)])
    groups = box_groups(data, (7, 7))
    small, medium, large = GROUPINGS["size"]
    assert groups["size"].tolist() == [small, medium, large, large, large]
    assert groups["size in patches"].tolist() == ["below 1 patch"] * 3 + ["1 to 4 patches", "from 16 patches"]
    assert groups["boxes in the image"].tolist() == ["2 to 5 boxes"] * 4 + ["1 box"]
    assert groups["of them of its class"].tolist() == ["1 of it"] + ["2 to 5 of it"] * 3 + ["1 of it"]
    assert groups["aspect"].tolist() == ["below 1.5 : 1"] * 3 + ["from 3 : 1", "1.5 to 3 : 1"]
    assert box_sizes(data.boxes).tolist() == ["small", "medium", "large", "large", "large"]
    nothing = box_groups(dataset_of([], [("a", 8, 8)]), (7, 7))
    assert (len(nothing), list(nothing.columns)) == (0, list(GROUPINGS))


@pytest.fixture
def ious() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"image_id": np.repeat(np.arange(30), 5), "label": rng.choice(["few", "many"], 150)})
    return frame.assign(oracle=rng.random(150), cam_peak=rng.random(150))


def test_each_group_is_summarised_by_itself_in_any_order_and_an_empty_one_is_listed(ious):
    frame = by_class(ious, ["few", "none", "many"])
    assert frame["group"].drop_duplicates().tolist() == ["few", "none", "many"]
    of = {name: rows.drop(columns="group").reset_index(drop=True) for name, rows in frame.groupby("group")}
    pd.testing.assert_frame_equal(of["many"], summarise(ious[ious["label"] == "many"]))
    assert of["none"]["value"].isna().all()
    assert (by_class(ious.iloc[:0], ["few"])["n_boxes"] == 0).all()
    turned = by_class(ious.sample(frac=1, random_state=1), ["many", "few"])
    for name, rows in turned.groupby("group"):
        pd.testing.assert_frame_equal(of[name], rows.drop(columns="group").reset_index(drop=True), rtol=1e-12)


def test_every_image_twice_leaves_the_values(ious):
    once = by_class(ious, ["few", "many"])
    twice = by_class(pd.concat([ious, ious.assign(image_id=ious["image_id"] + 1000)]), ["few", "many"])
    np.testing.assert_allclose(twice["value"], once["value"])
    assert (twice["high"] - twice["low"]).mean() < 0.85 * (once["high"] - once["low"]).mean()
