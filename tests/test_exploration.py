"""What the explorer computes, draws and hands on, without a widget."""

from __future__ import annotations

import io
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from adapted_scenes import write_adapter, write_adapters
from PIL import Image

from surgerylib.boxes import box_iou, extract_boxes
from surgerylib.datasets.images import decode_image
from surgerylib.engine.adapted_store import load_adapters
from surgerylib.engine.map_shards import MapSource
from surgerylib.engine.settings import Setting
from surgerylib.errors import ImageReadError, ParameterError
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
    phrases,
    words_of,
)
from surgerylib.extraction import BoxSettings
from surgerylib.frames import BOX_COLUMNS
from surgerylib.heatmaps import heatmaps
from surgerylib.words import DIOR_CLASSES, prompt_names
from surgerylib.workbook.check import check


def truth_of(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["label", *BOX_COLUMNS]).astype(
        {"label": "str"} | dict.fromkeys(BOX_COLUMNS, float)
    )


@pytest.fixture
def subject() -> Subject:
    image = np.random.default_rng(3).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    return Subject(
        "00007", "", image, truth_of(("ship", 5, 5, 40, 30), ("ship", 50, 10, 80, 50), ("dam", 0, 0, 90, 60))
    )


@pytest.fixture
def exploration(tiny, subject) -> Exploration:
    exploration = Exploration(tiny)
    exploration.show(subject, look(tiny, subject.image))
    return exploration


def test_an_answer_is_what_the_public_functions_give(tiny, subject, exploration):
    boxes = BoxSettings(percentile=60.0, min_side=3, nms_iou=0.6)
    question = Question(DIOR_CLASSES, "ship", ("standard", "vv_mixed"), Setting(MapSource(last_layers=2), boxes))
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


def test_another_threshold_runs_neither_the_model_nor_the_maps(exploration, monkeypatch):
    question = Question(DIOR_CLASSES, "ship")
    first = exploration.ask(question).answers[0]
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(exploration.clip, name, lambda *_: pytest.fail("the model ran"))
    other = Question(DIOR_CLASSES, "dam", setting=Setting(boxes=BoxSettings(percentile=90.0)))
    assert exploration.ask(other).answers[0].maps is first.maps


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


def test_one_forward_gives_all_layers_and_where_a_patch_attends(tiny, subject, monkeypatch):
    calls, forward = [], tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    seen = look(tiny, subject.image, 48)
    assert calls == [1]
    assert seen.grid == (6, 6)
    assert len(seen.tokens.qk) == tiny.depth
    tokens = forward(tiny.preprocess(subject.image, 48)[None], return_attention=True)
    for path, weights in (("qk", tokens.qk_attention), ("vv", tokens.vv_attention)):
        expected = weights[0].mean(dim=0)[1 + 2 * 6 + 4]
        attended = seen.attended(path, (2, 4))
        np.testing.assert_allclose(attended.ravel(), expected[1:].numpy(), atol=1e-6)
        assert 1 - attended.sum() == pytest.approx(float(expected[0]), abs=1e-5)


def test_phrases_are_taken_apart_at_commas():
    assert phrases(" red  roof,ship,, red roof ,\nblue barn") == ("red roof", "ship", "blue barn")
    for nothing in ("", " , ,"):
        with pytest.raises(ParameterError, match="type what to look for"):
            phrases(nothing)


def test_classes_are_asked_in_words_and_phrases_as_typed():
    assert words_of(("golffield", "high-rise", "ship"), DIOR_CLASSES) == ["golf course", "high-rise", "ship"]


def test_boxes_are_held_against_the_class_that_a_phrase_names(subject):
    def rows(shown: str, wanted: str = AS_NAMED) -> tuple[list[str], str]:
        own, words = held_against(Question((shown,), shown, held_against=wanted), subject.truth, DIOR_CLASSES)
        return list(own["label"]), words

    assert rows("Ship") == (["ship", "ship"], "ship")
    assert rows("golf course") == ([], "golffield")
    assert rows("red roof") == (["ship", "ship", "dam"], "every box, as “red roof” names no class")
    assert rows("ship", EVERY_BOX) == (["ship", "ship", "dam"], "every box")
    assert rows("red roof", "dam") == (["dam"], "dam")


def test_surgery_with_one_phrase_says_what_to_do(exploration):
    question = Question(("red roof",), "red roof", setting=Setting(MapSource(similarity="surgery")))
    with pytest.raises(ParameterError, match="'red roof' is alone: add another"):
        exploration.ask(question)
    both = Question(("red roof", "ship"), "red roof", setting=Setting(MapSource(similarity="surgery")))
    assert exploration.ask(both).answers[0].shown.shape == (4, 4)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(("ship",), "dam"), "'dam' is not asked for"),
        (Question(("ship",), "ship", setting=Setting(MapSource(last_layers=9))), "layers is 9"),
        (Question(("ship",), "ship", adapted=True), "no trained adapter for vv_mixed"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(exploration, question, message):
    with pytest.raises(ParameterError, match=message):
        exploration.ask(question)


def test_an_image_without_ground_truth_and_a_map_without_boxes(tiny, subject):
    exploration = Exploration(tiny)
    bare = subject._replace(truth=subject.truth.iloc[:0])
    exploration.show(bare, look(tiny, bare.image))
    question = Question(("ship",), "ship", setting=Setting(boxes=BoxSettings(floor=1e6)))
    answer = exploration.ask(question).answers[0]
    assert answer.boxes.shape == (0, 5)
    assert answer.best_ious.shape == (0,)
    assert view.headline(answer, "ship") == "0 boxes; no ground truth of ship"
    assert view.found_shapes(answer) == view.outline_points(answer) == view.truth_shapes(bare.truth, bare.truth) == []
    assert "No ground truth box of ship" in view.truth_table([answer], bare.truth, "ship")
    drawn = view.figure(exploration.ask(question), patch=(0, 0))
    assert len(drawn.axes) == 4


def test_the_outline_encloses_the_boxes():
    heatmap = np.zeros((14, 14), np.float32)
    heatmap[3:6, 8:11] = 1
    lines, level = mask_outline(heatmap, BoxSettings(percentile=96.0))
    box = extract_boxes(heatmap, (1, 1), percentile=96.0)[0]
    points = np.concatenate(lines)
    assert 0 < level < 1
    np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], box[:4], atol=1 / 224)
    assert mask_outline(np.full((4, 4), 0.3, np.float32), BoxSettings()) == ([], pytest.approx(0.3))


def test_an_adapter_answers_in_logits(tiny, subject, tmp_path):
    adapters = load_adapters(write_adapters(tmp_path / "adapters", tiny), tiny)
    exploration = Exploration(tiny, adapters)
    exploration.show(subject, look(tiny, subject.image))
    question = Question(DIOR_CLASSES, "ship", ("standard", "vv_mixed"), adapted=True)
    tokens = tiny.encode_image(tiny.preprocess(subject.image)[None], 3)
    text = tiny.encode_text(prompt_names(DIOR_CLASSES))
    for answer in exploration.ask(question).answers:
        expected = heatmaps(tokens, text, answer.kind, adapter=adapters[answer.kind].model)[0]
        np.testing.assert_allclose(answer.maps, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_pictures_are_jpeg_of_the_right_size(subject):
    tall = np.zeros((1000, 500, 3), np.uint8)
    tall[..., 0] = 200
    photo = np.array(Image.open(io.BytesIO(view.photo_bytes(tall))))
    assert photo.shape == (800, 400, 3)
    assert photo[400, 200, 0] > 150 > photo[400, 200, 2]  # red stays red
    ramp = np.tile(np.linspace(0, 1, 7, dtype=np.float32), (7, 1))
    overlay = np.array(Image.open(io.BytesIO(view.overlay_bytes(ramp))))
    assert overlay.shape == (224, 224, 3)
    assert overlay[112, 5, 2] > overlay[112, 5, 0]  # low is blue
    assert overlay[112, 218, 0] > overlay[112, 218, 2]  # high is red
    constant = np.array(Image.open(io.BytesIO(view.overlay_bytes(np.full((3, 3), 0.2, np.float32)))))
    assert constant.std(axis=(0, 1)).max() < 1


def test_shapes_say_what_they_are(subject, exploration):
    own, _ = held_against(Question(("ship",), "ship"), subject.truth, DIOR_CLASSES)
    shapes = view.truth_shapes(subject.truth, own)
    assert [shape["style"] for shape in shapes] == ["truth", "truth", "other"]
    assert [shape["text"] for shape in shapes] == ["", "ship", "dam"]  # the larger of the two ships
    answer = exploration.ask(Question(DIOR_CLASSES, "ship", setting=Setting(boxes=BoxSettings(min_side=0)))).answers[0]
    found = view.found_shapes(answer)
    assert len(found) == len(answer.boxes)
    np.testing.assert_allclose([shape["box"] for shape in found], answer.boxes[:, :4])


def test_tables_escape_what_was_typed(exploration):
    evil = "<img src=x onerror=alert(1)>"
    question = Question((evil, "ship"), evil)
    answers = exploration.ask(question).answers
    own, against = held_against(question, exploration.subject.truth, DIOR_CLASSES)
    for html in (view.truth_table(answers, own, against), view.patch_table(answers, question, (0, 1))):
        assert "<img" not in html
        assert "&lt;img" in html


def test_the_patch_table_is_in_order_of_similarity(exploration):
    question = Question(("ship", "dam", "airport"), "dam", ("vv_mixed",))
    answer = exploration.ask(question).answers[0]
    html = view.patch_table([answer], question, (1, 2))
    order = np.argsort(-answer.maps[:, 1, 2])
    places = [html.index(f">{question.asked[place]}<") for place in order]
    assert places == sorted(places)
    assert "Patch in row 2, column 3" in html
    assert html.index('class="shown"') < html.index(">dam<")


ORIGIN = Origin()


def test_the_setting_is_a_configuration_of_the_workbook(exploration, tmp_path):
    boxes = BoxSettings(percentile=85.5, nms_iou=0.4, floor=0.1, score="max")
    question = Question(("red roof",), "red roof", ("standard", "vv_mixed"), Setting(MapSource(last_layers=3), boxes))
    text = setting_yaml(ORIGIN, exploration.ask(question))
    values = yaml.safe_load(text)
    assert values["kinds"] == ["standard", "vv_mixed"]
    assert values["percentile"] == 85.5
    assert (values["nms_iou"], values["floor"], values["box_score"], values["last_layers"]) == (0.4, 0.1, "max", 3)
    assert "red roof" in text.splitlines()[1]
    config = tmp_path / "setting.yaml"
    config.write_text(text)
    assert "self-check" in str(check(config, only="01"))  # a parameter that no notebook knows would be refused


def test_the_setting_of_an_adapter_takes_its_own_floor(exploration):
    question = Question(("ship",), "ship", setting=Setting(boxes=BoxSettings(floor=0.0)))
    shown = exploration.ask(question)._replace(question=replace(question, adapted=True))
    values = yaml.safe_load(setting_yaml(replace(ORIGIN, adapter="adapters"), shown))
    assert (values["adapter"], values["adapter_floor"], values["floor"]) == ("adapters", 0.0, None)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_python_call_gives_the_same_boxes(tiny, tiny_folder, tmp_path, subject, capsys, adapted):
    picture = tmp_path / "it's.png"
    cv2.imwrite(str(picture), subject.image[..., ::-1])
    folder = write_adapters(tmp_path / "adapters", tiny)
    exploration = Exploration(tiny, load_adapters(folder, tiny))
    exploration.show(subject._replace(path=str(picture)), look(tiny, subject.image, 48))
    similarity = "cosine" if adapted else "surgery"
    setting = Setting(MapSource("vv_mixed", similarity, 3), BoxSettings(percentile=70.0, min_side=3, score="max"))
    question = Question(("golffield", "a “red” 'roof'"), "golffield", ("standard", "vv_mixed"), setting, adapted)
    origin = Origin(
        "x", "test", f"local-dir:{tiny_folder}", str(tiny_folder / "model.safetensors"), 48, 3, "auto", str(folder)
    )
    names: dict = {}
    shown = exploration.ask(question)
    exec(python_call(origin, shown, exploration), names)
    expected = shown.answers[-1].boxes
    assert len(expected)
    np.testing.assert_allclose(names["boxes"], expected, rtol=1e-4, atol=1e-3)
    assert "vv_mixed" in capsys.readouterr().out


def test_adapters_of_different_depths_are_called_with_their_own(tiny, tiny_folder, tmp_path, subject, monkeypatch):
    picture = tmp_path / "scene.png"
    cv2.imwrite(str(picture), subject.image[..., ::-1])
    folder = tmp_path / "adapters"
    for kind, layers in (("standard", 1), ("vv_mixed", 3)):
        monkeypatch.setattr("adapted_scenes.LAYERS", layers)
        write_adapter(folder / f"adapter_{kind}.safetensors", tiny, kind)
    exploration = Exploration(tiny, adapters=load_adapters(folder, tiny))
    exploration.show(subject._replace(path=str(picture)), look(tiny, subject.image))
    shown = exploration.ask(Question(DIOR_CLASSES, "ship", ("standard", "vv_mixed"), adapted=True))
    weights = str(tiny_folder / "model.safetensors")
    origin = Origin("x", "test", f"local-dir:{tiny_folder}", weights, None, 3, "cpu", str(folder))
    names: dict = {}
    exec(python_call(origin, shown, exploration), names)
    np.testing.assert_allclose(names["boxes"], shown.answers[-1].boxes, rtol=1e-4, atol=1e-3)


def test_a_large_image_is_drawn_reduced(tiny):
    image = np.zeros((3000, 6000, 3), np.uint8)
    exploration = Exploration(tiny)
    exploration.show(Subject("large", "", image, truth_of(("ship", 5000, 2000, 5900, 2900))), look(tiny, image))
    drawn = view.figure(exploration.ask(Question(DIOR_CLASSES, "ship")), patch=(1, 1))
    pictures = [axis.images[0] for axis in drawn.axes]
    assert {picture.get_array().shape for picture in pictures} == {(400, 800, 3)}
    assert {tuple(picture.get_extent()) for picture in pictures} == {(0, 6000, 3000, 0)}


def test_decoding_an_upload_reports_a_damaged_file(subject):
    _, data = cv2.imencode(".jpg", subject.image)
    assert decode_image(data.tobytes(), "a.jpg").shape == (60, 90, 3)
    for damaged in (data.tobytes()[:200], b"", b"no image at all"):
        with pytest.raises(ImageReadError, match=r"^a.jpg cannot be read"):
            decode_image(damaged, "a.jpg")
