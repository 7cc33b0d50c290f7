"""The explorer's widgets, driven from Python: what a browser would set, and what it would be sent."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import weakref
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml
from adapted_scenes import write_adapters
from PIL import Image
from refusals import refused

from surgerylib.errors import ParameterError
from surgerylib.explorer import Explorer, view_model
from surgerylib.explorer.controls import ALL_KINDS, ANY_CLASS
from surgerylib.heatmaps import HEATMAP_KINDS


@pytest.fixture
def options(arguments, tmp_path) -> dict:
    return arguments | {"depth": 3, "save_dir": str(tmp_path / "saved")}


def opened(options: dict) -> Explorer:
    explorer = Explorer(**options)
    explorer.wait()
    assert explorer.work.traceback == ""
    return explorer


@pytest.fixture
def explorer(options) -> Explorer:
    return opened(options)


def click(explorer: Explorer, *buttons: str) -> None:
    for button in buttons:
        getattr(explorer.controls, button).click()
        explorer.wait()


def put(explorer: Explorer, **values) -> None:
    """Set controls one by one, and wait for what follows."""
    for name, value in values.items():
        getattr(explorer.controls, name).value = value
        explorer.wait()


def line(explorer: Explorer) -> str:
    """What the line says, without its markup."""
    return unescape(explorer.work.line.value).split(">", 1)[-1].removesuffix("</div>")


def shapes(explorer: Explorer) -> list[dict]:
    return [shape for shape in explorer.stage.maps[0].shapes if shape["style"] == "found"]


def test_it_opens_on_the_first_image_and_a_class_that_it_holds(explorer):
    assert line(explorer) == ""
    assert explorer.controls.position.value == f"1 of 4: {explorer.dataset.images['image_id'][0]}"
    assert explorer.controls.shown.value in set(explorer.shown.subject.truth["label"])
    assert explorer.stage.photo.photo.startswith(b"\xff\xd8")
    assert explorer.stage.maps[0].overlay.startswith(b"\xff\xd8")
    assert len(shapes(explorer)) == len(explorer.shown.answers[0].boxes) > 0
    assert explorer.controls.layers.max == 3


def test_dragging_the_threshold_moves_boxes_and_sends_no_picture(explorer):
    panel = explorer.stage.maps[0]
    before, sent = shapes(explorer), []
    panel.observe(lambda change: sent.append(change["name"]))
    explorer.controls.percentile.value = 90.0
    assert shapes(explorer) != before
    assert not {"photo", "overlay"} & set(sent)
    assert {"shapes", "outline", "caption"} <= set(sent)
    assert explorer.shown.question.setting.percentile == 90.0
    found = [shape["box"] for shape in shapes(explorer)]
    np.testing.assert_allclose(found, explorer.shown.answers[0].boxes[:, :4])
    json.dumps(panel.shapes + panel.outline)  # plain values, as the browser gets them


def test_a_phrase_is_asked_for_and_shown(explorer):
    explorer.controls.ask.value = "own words"
    assert "type what to look for" in line(explorer)
    assert explorer.stage.maps[0].caption == "no answer to what is asked"
    explorer.controls.words.value = "red roof, Ship"
    assert line(explorer) == ""
    assert explorer.shown.question.asked == ("red roof", "Ship")
    assert explorer.stage.maps[0].title == "vv_mixed: “red roof”"
    assert "names no class" in explorer.stage.truths.value or explorer.shown.subject.truth.empty
    explorer.controls.words.value = "red roof, Ship, blue barn"
    assert explorer.controls.shown.value == "blue barn"  # what is new is what one wants to see
    explorer.controls.ask.value = "both"
    assert explorer.shown.question.asked == ("red roof", "Ship", "blue barn", *explorer.dataset.classes)
    assert explorer.controls.shown.value == "blue barn"
    put(explorer, words=", ".join(f"barn number {n}" for n in range(9)))  # so many are read in the background
    assert len(explorer.shown.question.asked) == 9 + len(explorer.dataset.classes)
    assert explorer.controls.shown.value == "barn number 0"


def test_all_four_kinds_stand_side_by_side(explorer):
    explorer.controls.similarity.value = "surgery"
    explorer.controls.kind.value = ALL_KINDS
    assert [panel.title.split(":")[0] for panel in explorer.stage.maps] == list(HEATMAP_KINDS)
    overlays = [panel.overlay for panel in explorer.stage.maps]
    assert overlays[0] == overlays[1]  # the built-in control
    assert len({*overlays[1:]}) == 3
    explorer.controls.kind.value = "standard"
    assert len(explorer.stage.panels.children) == 2
    assert explorer.stage.maps[0].overlay == overlays[0]


def test_next_previous_by_class_and_by_name(explorer):
    ids, boxes = list(explorer.dataset.images["image_id"]), explorer.dataset.boxes
    for button, expected in (("next", ids[1]), ("previous", ids[0]), ("previous", ids[-1])):
        click(explorer, button)
        assert explorer.shown.subject.name == expected
    label = boxes["label"].iloc[-1]
    put(explorer, with_class=label)
    assert explorer.shown.subject.name in set(boxes.loc[boxes["label"] == label, "image_id"])
    assert explorer.controls.shown.value == label
    put(explorer, find=f"{ids[3]}.jpg")
    assert explorer.shown.subject.name == ids[3]
    assert explorer.controls.with_class.value == ANY_CLASS
    assert explorer.controls.shown.value == label  # the reader's choice stays
    explorer.controls.find.value = "nowhere"
    assert line(explorer) == (
        f"no image 'nowhere' in split test of scenes, which holds {ids[0]} to {ids[-1]}; type a name, or a part of one"
    )
    assert explorer.shown.subject.name == ids[3]


def test_another_image_is_one_forward(explorer, monkeypatch):
    calls, clip = [], explorer._exploration.clip
    forward = clip.encode_image
    monkeypatch.setattr(clip, "encode_image", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    click(explorer, "next")
    explorer.controls.kind.value = ALL_KINDS
    explorer.controls.layers.value = 3
    explorer.stage.photo.pointed = [1, 1]
    assert calls == [1]
    put(explorer, image_size=48)
    assert calls == [1, 1]
    assert explorer.stage.photo.grid == [6, 6]
    assert explorer.shown.answers[0].shown.shape == (6, 6)


def test_the_pointed_patch_shows_in_every_panel(explorer):
    explorer.stage.maps[0].pointed = [2, 3]
    assert explorer.stage.photo.pointed == explorer.stage.attention["vv"].pointed == [2, 3]
    assert "Patch in row 3, column 4" in explorer.stage.patches.value
    assert explorer.stage.attention["qk"].overlay != explorer.stage.attention["vv"].overlay
    assert explorer.stage.looks.layout.display == ""
    before = explorer.stage.patches.value
    explorer.controls.words.value = "barn"
    explorer.controls.ask.value = "both"
    assert "barn" in explorer.stage.patches.value != before
    explorer.stage.photo.pinned = True
    put(explorer, image_size=16)  # a grid of 2 x 2: the patch is gone
    assert explorer.stage.patch is None
    assert not any(panel.pinned for panel in (explorer.stage.photo, *explorer.stage.maps))
    assert explorer.stage.patches.value == ""
    assert explorer.stage.looks.layout.display == "none"
    explorer.stage.maps[0].pointed = [3, 3]  # sent before the browser knew of the smaller grid
    assert (line(explorer), explorer.work.traceback, explorer.stage.patch) == ("", "", None)


def test_any_image_file_and_an_upload(explorer, tmp_path):
    file = tmp_path / "field 7.png"
    Image.effect_noise((70, 40), 50).save(file)
    data = file.read_bytes()
    put(explorer, path=str(file))
    assert explorer.shown.subject.name == explorer.controls.position.value == "field 7.png"
    assert explorer.stage.photo.size == [70, 40]
    assert "No ground truth box" in explorer.stage.truths.value
    sent = {"name": "sent.png", "type": "image/png", "size": len(data), "content": memoryview(data)}
    put(explorer, upload=(sent | {"last_modified": datetime.now(UTC)},))
    assert explorer.shown.subject.name == "sent.png"
    click(explorer, "next")
    assert explorer.controls.position.value.startswith("2 of 4")


def test_what_cannot_be_opened_is_one_line_and_the_view_stays(explorer):
    for path, message in (
        *[("/nowhere/at/all.jpg", "no image file /nowhere/at/all.jpg")] * 2,  # the same name can be given again
        (__file__, "is not an image that can be read"),
        ("x" * 300, "cannot be read"),
    ):
        before = explorer.shown.subject
        put(explorer, path=path)
        assert message in line(explorer)
        assert "\n" not in explorer.work.line.value
        assert explorer.shown.subject is before
        click(explorer, "next")
        assert line(explorer) == explorer.work.traceback == ""


def test_damaged_images_are_left_out_or_one_line(options, training_root, tmp_path):
    broken = shutil.copytree(training_root, tmp_path / "broken")
    second, third = sorted((broken / "JPEGImages-test").iterdir())[1:3]
    second.write_bytes(b"")
    explorer = opened(options | {"dataset": broken})
    assert explorer.controls.position.value.startswith("1 of 3")
    assert f"{second.stem}: " in unescape(explorer.note.value)
    third.write_bytes(third.read_bytes()[:300])
    click(explorer, "next")
    assert f"{third} cannot be read" in line(explorer)
    click(explorer, "next")
    assert (line(explorer), explorer.controls.position.value[:6]) == ("", "3 of 3")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"checkpoint": "/nowhere.pt"}, "nowhere.pt"),
        ({"split": "nosuch"}, "no split 'nosuch'"),
        ({"adapter": "/nowhere"}, "no file or folder /nowhere"),
        ({"image_size": 33}, "multiple of the patch"),
        ({"model": None}, "model must be"),
        ({"dataset": "~nobody-of-that-name/x"}, "dataset folder"),
        ({"modle": "x"}, "there is no setting 'modle'; nearest: model"),
    ],
)
def test_wrong_values_become_a_line_not_a_traceback(options, wrong, message):
    explorer = opened(options | wrong)
    assert message in line(explorer)
    for button in ("next", "save", "open"):
        click(explorer, button)
        assert line(explorer) != ""
    explorer.controls.percentile.value = 50.0
    assert explorer.work.traceback == ""


def test_a_wrong_data_set_can_be_mended_in_the_widget(options, training_root, tmp_path):
    explorer = opened(options | {"dataset": "/nowhere"})
    assert "no dataset folder /nowhere" in line(explorer)
    for ask in (explorer.save, explorer.python_call, explorer.setting_yaml, lambda: explorer.shown):
        refused(ask, ParameterError, "nothing is shown")
    Image.new("L", (40, 40)).save(tmp_path / "alone.png")
    put(explorer, path=str(tmp_path / "alone.png"))
    assert (line(explorer), explorer.shown.subject.name) == ("", "alone.png")
    put(explorer, dataset="x" * 300)
    assert "no dataset folder" in line(explorer)
    put(explorer, dataset=str(training_root))
    assert len(explorer.shown.subject.truth)
    assert explorer.controls.split.options == ("test", "train", "val", "trainval")
    put(explorer, split="val")
    assert explorer.controls.position.value.startswith("1 of 5")
    assert yaml.safe_load(explorer.setting_yaml())["split"] == "val"


def test_saving_writes_a_picture_and_a_setting_and_never_over_another(explorer, options, tmp_path):
    explorer.controls.kind.value = ALL_KINDS
    explorer.stage.photo.pointed = [0, 1]
    first = explorer.save()
    click(explorer, "save")
    saved = sorted(path.name for path in Path(options["save_dir"]).iterdir())
    stem = f"{explorer.shown.subject.name}_{explorer.controls.shown.value}"
    assert saved == [f"{stem}_01.png", f"{stem}_01.yaml", f"{stem}_02.png", f"{stem}_02.yaml"]
    assert line(explorer) == f"saved {Path(options['save_dir']) / stem}_02.png and {stem}_02.yaml"
    with Image.open(first[0]) as picture:
        assert min(picture.size) > 500
        assert "heatmaps of standard" in picture.info["Description"]
    before = first[1].read_text()
    assert yaml.safe_load(before)["kinds"] == list(HEATMAP_KINDS)
    first[0].unlink()
    explorer.controls.percentile.value = 44.0
    assert explorer.save()[1] != first[1]
    assert first[1].read_text() == before


@pytest.mark.parametrize(("save_dir", "message"), [(None, "save_dir is None"), (f"{__file__}/below", "be written")])
def test_nowhere_to_save_is_one_line(options, save_dir, message):
    explorer = opened(options | {"save_dir": save_dir})
    click(explorer, "save")
    assert message in line(explorer)


def test_a_control_that_another_makes_void_is_switched_off(explorer):
    assert "percentile=75.0" in explorer.controls.copy.text
    assert explorer.controls.nms_iou.disabled
    assert explorer.controls.adapted.disabled
    explorer.controls.use_nms.value = explorer.controls.use_floor.value = True
    assert not explorer.controls.nms_iou.disabled
    assert "nms_iou=0.5" in explorer.controls.copy.text == explorer.python_call()
    assert not explorer.controls.floor.disabled
    explorer.controls.floor.value = 1e9
    assert shapes(explorer) == []
    assert "0 boxes" in explorer.stage.maps[0].caption


def test_the_adapter_switch_changes_the_maps_and_says_so(options, tiny, tmp_path):
    explorer = opened(options | {"adapter": str(write_adapters(tmp_path / "adapters", tiny))})
    before = explorer.shown.answers[0].shown
    explorer.controls.adapted.value = True
    assert explorer.controls.similarity.disabled
    assert explorer.stage.maps[0].title.startswith("vv_mixed + adapter")
    assert np.abs(explorer.shown.answers[0].shown - before).max() > 0.1


def leaf_slowly(explorer: Explorer, monkeypatch) -> threading.Event:
    """Go to the next image, whose file is being read until the event is set."""
    started, go_on, read = threading.Event(), threading.Event(), view_model.read_image
    monkeypatch.setattr(view_model, "read_image", lambda path: (started.set(), go_on.wait(20), read(path))[2])
    explorer.controls.next.click()
    assert started.wait(20)
    return go_on


def test_the_kernel_answers_while_an_image_is_read(explorer, monkeypatch):
    go_on = leaf_slowly(explorer, monkeypatch)
    assert explorer.work.busy.layout.visibility == "visible"
    explorer.controls.percentile.value = 91.0  # answered at once, of the image that is still shown
    assert explorer.shown.answers[0].boxes.shape[1] == 5
    assert len(shapes(explorer)) == len(explorer.shown.answers[0].boxes)
    explorer.controls.next.click()  # the newest counts
    explorer.controls.next.click()
    go_on.set()
    explorer.wait()
    assert explorer.controls.position.value.startswith("4 of 4")
    assert explorer.work.busy.layout.visibility == "hidden"


def test_another_size_is_of_the_image_that_was_asked_for_last(explorer, monkeypatch):
    names, read = list(explorer.dataset.images["image_id"]), view_model.read_image
    go_on = leaf_slowly(explorer, monkeypatch)
    explorer.controls.image_size.value = 48
    go_on.set()
    explorer.wait()
    assert explorer.controls.position.value == f"2 of 4: {names[1]}"
    assert explorer.shown.seen.image_size == 48
    monkeypatch.setattr(view_model, "read_image", lambda path: read("/nowhere.jpg"))
    click(explorer, "next")
    put(explorer, image_size=64)
    assert "/nowhere.jpg" in line(explorer)
    assert explorer.controls.position.value == f"2 of 4: {names[1]}"
    assert yaml.safe_load(explorer.setting_yaml())["image_size"] == 48  # of what is shown


def test_after_a_failed_question_nothing_of_the_one_before_is_handed_on(explorer, monkeypatch):
    explorer.stage.photo.pointed = [1, 1]
    explorer.controls.ask.value = "own words"
    assert explorer.controls.copy.text == explorer.stage.patches.value == ""
    explorer.stage.photo.pointed = [2, 2]
    assert explorer.stage.patches.value == ""
    click(explorer, "save")
    assert "nothing is shown" in line(explorer)
    explorer.controls.ask.value = "classes"
    assert "Patch in row 3" in explorer.stage.patches.value
    monkeypatch.setattr(explorer._exploration, "ask", lambda _: 1 / 0)
    explorer.controls.percentile.value = 33.0
    assert "a bug of the workbook (ZeroDivisionError: division by zero)" in line(explorer)
    assert "1 / 0" in explorer.work.traceback


def test_closing_lets_go_of_the_model(options):
    explorer = opened(options | {"checkpoint": "random"})
    assert "The weights are random" in explorer.note.value
    model = weakref.ref(explorer._exploration.clip)
    explorer.close()
    gc.collect()
    assert model() is None
