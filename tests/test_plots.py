from __future__ import annotations

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from judged_frames import judged
from PIL import Image

from surgerylib.boxes import extract_many
from surgerylib.figures import maps as plots
from surgerylib.figures import style
from surgerylib.heatmaps import Setting
from surgerylib.matching import BOX_COLUMNS
from surgerylib.study.example_images import example_pairs

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
HEATMAP = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)


def boxes(*rows) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["image_id", "label", *BOX_COLUMNS, "score", "kind"])
    return frame.astype(dict.fromkeys(BOX_COLUMNS, float))


def test_figures_draw_without_boxes_and_with_a_constant_map():
    some = boxes(("a", "ship", 5, 5, 40, 30, 0.3, "vv_mixed"), ("a", "ship", 50, 10, 80, 50, 0.2, "vv_mixed"))
    nothing, flat = some.iloc[:0], np.zeros_like(HEATMAP)
    for found, truth in ((some, nothing), (nothing, some)):
        for figure in (
            plots.three_columns(IMAGE, flat, truth, found, "ship", "a: ship"),
            plots.kinds_grid(IMAGE, {"standard": HEATMAP, "mine": flat}, truth, found, "ship", "title"),
            plots.extraction_steps(IMAGE, flat, truth, label="ship", patch_size=32),
        ):
            figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("place", "line"), [(10, "line: percentile 75"), (90, "line: floor {:.3g}"), (101, "all below floor {:.3g}")]
)
def test_steps_with_a_floor_show_the_line_that_the_mask_has(place, line):
    floor = float(np.percentile(HEATMAP, place)) if place <= 100 else 9.0
    settings = Setting(floor=floor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.extraction_steps(IMAGE, HEATMAP, boxes(), label="ship", patch_size=32, boxes=settings)
    titles = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert f"3  bilinear to 224, {line.format(floor)}" in titles
    (found,) = extract_many(HEATMAP, (224, 224), [settings])
    (masked,) = (axis for title, axis in titles.items() if title.startswith("4"))
    assert masked.images[0].get_array().mean() == pytest.approx(found.activated)


def test_curves_and_bars_say_when_a_class_has_no_boxes():
    truth = boxes(*((image_id, "ship", 0, 0, 9, 9, 0, "") for image_id in "ab")).drop(columns=["score", "kind"])
    found = boxes(*(("a", "ship", 0, 0, 9, 9, 0.5, kind) for kind in style.KIND_LOOKS))
    result = judged(found, truth, image_ids=["a", "b"], classes=["ship", "dam"], n_resamples=20)
    assert len(plots.map_curves(result.summary(), {"present": "p", "all": "a"}).axes) == 2
    rows = result.by_class().query("protocol == 'all' and iou_threshold == 0.05")
    axis = plots.class_bars(rows, "ap", "title", "AP").axes[0]
    assert [text.get_text().strip() for text in axis.texts] == ["no boxes in this split"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["dam  (0)", "ship  (2)"]


def test_examples_show_many_classes_and_no_image_twice():
    truth = pd.DataFrame(
        [("1", "ship"), ("1", "dam"), ("2", "ship"), ("3", "ship"), ("3", "dam"), ("4", "airport")],
        columns=["image_id", "label"],
    )
    pairs = example_pairs(truth, ["4", "3", "2", "1"], 3)
    assert pairs[0] == ("4", "airport")
    assert len({image for image, _ in pairs}) == 3
    assert len(example_pairs(truth, ["1", "2", "3", "4"], 99)) == 4
    assert example_pairs(truth.iloc[:0], ["1"], 3) == []


def test_best_iou():
    truth = boxes(("a", "ship", 0, 0, 10, 10, 0, ""), ("a", "ship", 50, 50, 60, 60, 0, ""))
    found = boxes(("a", "ship", 0, 0, 10, 5, 0.1, ""), ("a", "ship", 0, 0, 10, 10, 0.1, ""))
    assert style.best_iou(truth, found).tolist() == [1, 0]
    assert style.best_iou(truth, found.iloc[:0]).tolist() == [0, 0]


@pytest.mark.parametrize("photo", [False, True])
def test_the_title_becomes_the_caption_and_stays_in_the_file(tmp_path, monkeypatch, photo):
    shown = []
    monkeypatch.setattr(style, "display", lambda data, **options: shown.append((data, options["metadata"])))
    figure = plots.kinds_grid(IMAGE, {"standard": HEATMAP}, boxes(), boxes(), "ship", "It finds the ship.")
    style.show(figure, "Heatmap above, boxes below", tmp_path / "a.png", photo=photo)
    (data, metadata), (text, repeated) = shown
    (mime,) = data
    assert mime == ("image/jpeg" if photo else "image/png")
    caption = {"finding": "It finds the ship", "caption": "Heatmap above, boxes below."}
    assert metadata[mime] == {"alt": "It finds the ship. Heatmap above, boxes below.", **caption}
    assert repeated == {"repeats_caption": True}
    assert text.data == "**It finds the ship.** Heatmap above, boxes below."
    with Image.open(tmp_path / "a.png") as file, Image.open(io.BytesIO(data[mime])) as embedded:
        assert file.info["Title"] == "It finds the ship"
        assert file.info["Description"] == "Heatmap above, boxes below."
        assert embedded.height < file.height  # the line of the title is gone


def test_letters_of_any_script_draw_without_a_word(recwarn):
    row = {"label": "航拍", "kind": "standard", "ap": 0.5, "low": 0.4, "high": 0.6, "n_ground_truth": 3}
    fig = plots.class_bars(pd.DataFrame([row]), "ap", "图像 $x^2$", "AP")
    assert style.figure_bytes(fig, "png", "图像", title="图像").startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_a_large_photograph_is_shrunk_before_it_is_drawn_and_keeps_its_coordinates():
    _, axes = style.new_figure(1, 1, size=(3, 3))
    style.photo_axis(axes[0, 0], np.zeros((1600, 2000, 3), np.uint8))
    (shown,) = axes[0, 0].get_images()
    assert max(shown.get_size()) < 1000
    assert shown.get_extent() == [0, 2000, 1600, 0]
