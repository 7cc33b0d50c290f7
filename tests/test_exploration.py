"""What the explorer computes, draws and hands on, without a widget."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from adapted_scenes import write_adapter, write_adapters
from PIL import Image
from refusals import refused

from surgerylib.boxes import box_iou, extract_boxes
from surgerylib.engine.adapters import load_adapters
from surgerylib.errors import ParameterError
from surgerylib.explorer import drawing as view
from surgerylib.explorer.export import Origin, python_call, setting_yaml
from surgerylib.explorer.view_model import (
    AS_NAMED,
    EVERY_BOX,
    Exploration,
    Question,
    Subject,
    held_against,
    look,
    mask_outline,
)
from surgerylib.heatmaps import Setting, heatmaps
from surgerylib.matching import BOX_COLUMNS
from surgerylib.words import DIOR_CLASSES, prompt_names
from surgerylib.workbook.check import check


@pytest.fixture
def subject(tmp_path) -> Subject:
    image = np.random.default_rng(3).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    path = tmp_path / "it's.png"
    cv2.imwrite(str(path), image[..., ::-1])
    rows = [("ship", 5, 5, 40, 30), ("ship", 50, 10, 80, 50), ("dam", 0, 0, 90, 60)]
    truth = pd.DataFrame(rows, columns=["label", *BOX_COLUMNS]).astype(dict.fromkeys(BOX_COLUMNS, float))
    return Subject("00007", str(path), image, truth)


@pytest.fixture
def exploration(tiny, subject) -> Exploration:
    exploration = Exploration(tiny)
    exploration.show(subject, look(tiny, subject.image))
    return exploration


def test_a_patch_attends_as_the_last_block_does(tiny, subject):
    seen = look(tiny, subject.image, 48)
    assert (seen.grid, len(seen.tokens.qk)) == ((6, 6), tiny.depth)
    tokens = tiny.encode_image(tiny.preprocess(subject.image, 48)[None], return_attention=True)
    for path, weights in (("qk", tokens.qk_attention), ("vv", tokens.vv_attention)):
        expected = weights[0].mean(dim=0)[1 + 2 * 6 + 4]
        np.testing.assert_allclose(seen.attended(path, (2, 4)).ravel(), expected[1:].numpy(), atol=1e-6)


def test_an_answer_is_what_the_public_functions_give(tiny, subject, exploration):
    boxes = Setting(percentile=60.0, min_side=3, nms_iou=0.6)
    question = Question(DIOR_CLASSES, "ship", ("standard", "vv_mixed"), replace(boxes, layers=2))
    text = tiny.encode_text(prompt_names(DIOR_CLASSES))
    tokens = tiny.encode_image(tiny.preprocess(subject.image)[None], 2)
    place = DIOR_CLASSES.index("ship")
    for answer, kind in zip(exploration.ask(question).answers, question.kinds, strict=True):
        maps = heatmaps(tokens, text, kind)[0]
        expected = extract_boxes(maps[place], subject.size_wh, percentile=60.0, min_side=3, nms_iou=0.6)
        assert answer.kind == kind
        np.testing.assert_allclose(answer.maps, maps.numpy(), atol=1e-5)
        np.testing.assert_allclose(answer.boxes, expected, atol=1e-3)
        own = subject.truth.loc[subject.truth["label"] == "ship", BOX_COLUMNS].to_numpy()
        ious = box_iou(own[:, None], expected[None, :, :4]).max(axis=1)
        np.testing.assert_allclose(answer.best_ious, ious, atol=1e-4)


def test_new_phrases_are_all_that_the_text_tower_sees_and_at_once(tiny, monkeypatch):
    exploration = Exploration(tiny)
    exploration.text(("blue barn", *DIOR_CLASSES))
    assert exploration.unread(("blue barn", "green barn", "ship", "green barn")) == ["green barn"]
    seen, encode = [], tiny._encode_prompts
    monkeypatch.setattr(tiny, "_encode_prompts", lambda prompts: (seen.append(prompts), encode(prompts))[1])
    asked = ("blue barn", "green barn", "red barn", *DIOR_CLASSES)
    rows = exploration.text(asked)
    assert [len(prompts) for prompts in seen] == [10]
    together = tiny.encode_text(["blue barn", "green barn", "red barn", *prompt_names(DIOR_CLASSES)])
    torch.testing.assert_close(rows, together, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shown", "wanted", "rows", "words"),
    [
        ("Ship", AS_NAMED, ["ship", "ship"], "ship"),
        ("golf course", AS_NAMED, [], "golffield"),
        ("red roof", AS_NAMED, ["ship", "ship", "dam"], "every box, as “red roof” names no class"),
        ("ship", EVERY_BOX, ["ship", "ship", "dam"], "every box"),
        ("red roof", "dam", ["dam"], "dam"),
    ],
)
def test_boxes_are_held_against_the_class_that_a_phrase_names(subject, shown, wanted, rows, words):
    own, said = held_against(Question((shown,), shown, held_against=wanted), subject.truth, DIOR_CLASSES)
    assert (list(own["label"]), said) == (rows, words)


def test_a_question_that_cannot_be_answered_says_why(exploration):
    for question, message in (
        (Question(("ship",), "dam"), "'dam' is not asked for"),
        (Question(("ship",), "ship", setting=Setting(layers=9)), "layers is 9"),
        (Question(("ship",), "ship", adapted=True), "no trained adapter for vv_mixed"),
        (Question(("red roof",), "red roof", setting=Setting(similarity="surgery")), "is alone: add another"),
    ):
        refused(exploration.ask, ParameterError, message, question)


def test_an_image_without_ground_truth_and_a_map_without_boxes(tiny, subject):
    exploration = Exploration(tiny)
    bare = subject._replace(truth=subject.truth.iloc[:0])
    exploration.show(bare, look(tiny, bare.image))
    question = Question(("ship",), "ship", setting=Setting(floor=1e6))
    answer = exploration.ask(question).answers[0]
    assert (answer.boxes.shape, answer.best_ious.shape) == ((0, 5), (0,))
    assert view.headline(answer, "ship") == "0 boxes; no ground truth of ship"
    assert view.found_shapes(answer) == view.outline_points(answer) == view.truth_shapes(bare.truth, bare.truth) == []
    assert "No ground truth box of ship" in view.truth_table([answer], bare.truth, "ship")
    assert len(view.figure(exploration.ask(question), patch=(0, 0)).axes) == 4


def test_the_outline_encloses_the_boxes():
    heatmap = np.zeros((14, 14), np.float32)
    heatmap[3:6, 8:11] = 1
    lines, level = mask_outline(heatmap, Setting(percentile=96.0))
    box = extract_boxes(heatmap, (1, 1), percentile=96.0)[0]
    points = np.concatenate(lines)
    assert 0 < level < 1
    np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], box[:4], atol=1 / 224)
    assert mask_outline(np.full((4, 4), 0.3, np.float32), Setting()) == ([], pytest.approx(0.3))


def test_pictures_are_jpeg_of_the_right_size_in_the_right_colours():
    def decoded(jpeg: bytes) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(jpeg)))

    tall = np.zeros((1000, 500, 3), np.uint8)
    tall[..., 0] = 200
    photo = decoded(view.photo_bytes(tall))
    assert photo.shape == (800, 400, 3)
    assert photo[400, 200, 0] > 150 > photo[400, 200, 2]  # red stays red
    overlay = decoded(view.overlay_bytes(np.tile(np.linspace(0, 1, 7, dtype=np.float32), (7, 1))))
    assert overlay.shape == (224, 224, 3)
    assert overlay[112, 5, 2] > overlay[112, 5, 0]  # low is blue
    assert decoded(view.overlay_bytes(np.full((3, 3), 0.2, np.float32))).std(axis=(0, 1)).max() < 1


def test_tables_escape_what_was_typed(exploration):
    evil = "<img src=x onerror=alert(1)>"
    question = Question((evil, "ship"), evil)
    answers = exploration.ask(question).answers
    own, against = held_against(question, exploration.subject.truth, DIOR_CLASSES)
    patch_table = view.patch_table(answers, question, (0, 1))
    for html in (view.truth_table(answers, own, against), patch_table):
        assert "<img" not in html
        assert "&lt;img" in html
    evil_first = bool(answers[0].maps[0, 0, 1] > answers[0].maps[1, 0, 1])
    assert (patch_table.index("&lt;img") < patch_table.index(">ship<")) == evil_first
    shapes = view.truth_shapes(exploration.subject.truth, own.iloc[:2])
    assert [shape["style"] for shape in shapes] == ["truth", "truth", "other"]
    assert [shape["text"] for shape in shapes] == ["", "ship", "dam"]  # the larger of the two ships


def test_the_setting_is_a_configuration_of_the_workbook(exploration, tmp_path):
    boxes = Setting(percentile=85.5, nms_iou=0.4, floor=0.1, box_score="max")
    question = Question(("red roof",), "red roof", ("standard", "vv_mixed"), replace(boxes, layers=3))
    text = setting_yaml(Origin(), exploration.ask(question))
    values = yaml.safe_load(text)
    assert values.items() >= {**question.setting.parameters(), "kinds": ["standard", "vv_mixed"]}.items()
    assert "red roof" in text.splitlines()[1]
    config = tmp_path / "setting.yaml"
    config.write_text(text)
    assert "self-check" in str(check(config, only="01"))  # a parameter that no notebook knows would be refused
    adapted = exploration.ask(question)._replace(question=replace(question, adapted=True))
    values = yaml.safe_load(setting_yaml(Origin(adapter="adapters"), adapted))
    assert (values["adapter"], values["adapter_floor"], values["floor"]) == ("adapters", 0.1, None)


def assert_call_gives(origin: Origin, exploration: Exploration, question: Question) -> None:
    """The Python call that is shown, run, has the boxes that are shown."""
    shown, names = exploration.ask(question), {}
    exec(python_call(origin, shown, exploration), names)
    assert len(shown.answers[-1].boxes)
    np.testing.assert_allclose(names["boxes"], shown.answers[-1].boxes, rtol=1e-4, atol=1e-3)


@pytest.fixture
def origin(tiny_folder, tmp_path) -> Origin:
    weights, adapters = str(tiny_folder / "model.safetensors"), str(tmp_path / "adapters")
    return Origin("x", "test", f"local-dir:{tiny_folder}", weights, 48, 3, "auto", adapters)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_python_call_gives_the_same_boxes(tiny, origin, subject, capsys, adapted):
    adapters = load_adapters(write_adapters(Path(origin.adapter), tiny), tiny)
    exploration = Exploration(tiny, adapters)
    exploration.show(subject, look(tiny, subject.image, 48))
    setting = Setting("vv_mixed", "cosine" if adapted else "surgery", 3, 70.0, min_side=3, box_score="max")
    question = Question(("golffield", "a “red” 'roof'"), "golffield", ("standard", "vv_mixed"), setting, adapted)
    assert_call_gives(origin, exploration, question)
    assert "vv_mixed" in capsys.readouterr().out


def test_adapters_of_different_depths_are_called_with_their_own(tiny, origin, subject, monkeypatch):
    folder = Path(origin.adapter)
    for kind, layers in (("standard", 1), ("vv_mixed", 3)):
        monkeypatch.setattr("adapted_scenes.LAYERS", layers)
        write_adapter(folder / f"adapter_{kind}.safetensors", tiny, kind)
    exploration = Exploration(tiny, load_adapters(folder, tiny))
    exploration.show(subject, look(tiny, subject.image))
    question = Question(DIOR_CLASSES, "ship", ("standard", "vv_mixed"), adapted=True)
    assert_call_gives(replace(origin, image_size=None, device="cpu"), exploration, question)
