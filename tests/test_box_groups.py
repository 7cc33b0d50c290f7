from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from surgerylib.datasets import Dataset
from surgerylib.engine.localization import localization_summary
from surgerylib.study.box_groups import GROUPINGS, box_groups, box_sizes, breakdown


def dataset_of(boxes: list[tuple], sizes: dict[str, tuple[int, int]]) -> Dataset:
    images = pd.DataFrame(
        [(image_id, "", *size) for image_id, size in sizes.items()], columns=["image_id", "path", "width", "height"]
    )
    frame = pd.DataFrame(boxes, columns=["image_id", "label", "xmin", "ymin", "xmax", "ymax"])
    nothing = pd.DataFrame(columns=["image_id", "label", "repair"])
    return Dataset("d", Path("d"), "test", "DIOR", images, frame, ("ship", "dam"), nothing, 0)


def test_groups_by_hand():
    boxes = [
        ("a", "ship", 0, 0, 31, 33),  # 1023 px, below 32²; of a 7 x 7 grid on 800 x 800: 0.08 patches; 1.06 : 1
        ("a", "dam", 0, 0, 32, 32),  # 1024 px is medium
        ("a", "dam", 0, 0, 96, 96),  # 9216 px is large; 0.71 patches
        ("a", "dam", 0, 0, 400, 100),  # 3.06 patches; 4 : 1
        ("b", "ship", 0, 0, 400, 200),  # the whole of a 400 x 200 image is 49 patches; 2 : 1
    ]
    groups = box_groups(dataset_of(boxes, {"a": (800, 800), "b": (400, 200), "c": (10, 10)}), (7, 7))
    small, medium, large = GROUPINGS["size"]
    assert groups["size"].tolist() == [small, medium, large, large, large]
    assert groups["size in patches"].tolist() == ["below 1 patch"] * 3 + ["1 to 4 patches", "from 16 patches"]
    assert groups["boxes in the image"].tolist() == ["2 to 5 boxes"] * 4 + ["1 box"]
    assert groups["of them of its class"].tolist() == ["1 of it"] + ["2 to 5 of it"] * 3 + ["1 of it"]
    assert groups["aspect"].tolist() == ["below 1.5 : 1"] * 3 + ["from 3 : 1", "1.5 to 3 : 1"]
    frame = dataset_of(boxes, {}).boxes
    assert box_sizes(frame).tolist() == ["small", "medium", "large", "large", "large"]


def test_no_boxes():
    groups = box_groups(dataset_of([], {"a": (8, 8)}), (7, 7))
    assert groups.empty
    assert list(groups.columns) == list(GROUPINGS)
    nothing = breakdown(pd.DataFrame({"oracle": []}), groups["size"], list(GROUPINGS["size"]), [])
    assert nothing["group"].drop_duplicates().tolist() == list(GROUPINGS["size"])
    assert nothing["value"].isna().all()
    assert (nothing["n_boxes"] == 0).all()


@pytest.fixture
def case() -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    images = np.repeat(np.arange(30), 5)
    ious = pd.DataFrame({"oracle": rng.random(150), "cam_peak": rng.random(150)})
    return ious, rng.choice(["few", "many"], 150), images


def test_each_group_is_summarised_by_itself_and_an_empty_one_is_listed(case):
    ious, groups, images = case
    frame = breakdown(ious, groups, ["few", "none", "many"], images)
    assert frame["group"].drop_duplicates().tolist() == ["few", "none", "many"]
    own = frame[frame["group"] == "many"].drop(columns="group").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, localization_summary(ious[groups == "many"], images[groups == "many"]))
    assert frame[frame["group"] == "none"]["value"].isna().all()
    assert set(frame.loc[frame["group"] != "none", "n_boxes"]) == {(groups == "few").sum(), (groups == "many").sum()}


def test_the_order_of_boxes_images_and_groups_changes_nothing(case):
    ious, groups, images = case
    order = np.random.default_rng(1).permutation(len(ious))
    once = breakdown(ious, groups, ["few", "many"], images)
    other = breakdown(ious.iloc[order], groups[order], ["many", "few"], images[order])
    other = other.sort_values("group", kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(once, other, rtol=1e-12)


def test_every_image_twice_leaves_the_values(case):
    ious, groups, images = case
    once = breakdown(ious, groups, ["few", "many"], images)
    twice = breakdown(
        pd.concat([ious, ious]), np.tile(groups, 2), ["few", "many"], np.concatenate([images, images + 1000])
    )
    np.testing.assert_allclose(twice["value"], once["value"])
    assert (twice["high"] - twice["low"]).mean() < 0.85 * (once["high"] - once["low"]).mean()
