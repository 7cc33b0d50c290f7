from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import refused
from tiny_models import random, unit

from surgerylib.boxes import resize_map
from surgerylib.clip import ImageTokens
from surgerylib.errors import ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS, Setting, heatmaps, joint_names, upsample
from surgerylib.words import check_kinds


@pytest.fixture
def tokens() -> ImageTokens:
    """Two layers, three images, a grid of 4 x 5 patches, 16 dimensions."""
    return ImageTokens(
        qk=unit(random(2, 3, 21, 16)), vv=unit(random(2, 3, 21, 16, seed=1)), features=random(2, 3, 20, 8), grid=(4, 5)
    )


@pytest.fixture
def text() -> torch.Tensor:
    return unit(random(6, 16, seed=2))


def published_surgery(patches: torch.Tensor, cls: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """One image, elementwise as published: [N, C, D] products, weighted, minus their mean over classes."""
    probability = torch.softmax(2 * cls @ text.T, dim=-1)
    weight = probability / probability.mean()
    products = patches[:, None, :] * text[None, :, :] * weight[None, :, None]
    return (products - products.mean(dim=1, keepdim=True)).sum(dim=-1)


@pytest.mark.parametrize(("kind", "cls_path", "patch_path"), [
    ("standard", "qk", "qk"), ("vv_qk", "qk", "qk"), ("vv_vv", "vv", "vv"), ("vv_mixed", "qk", "vv")
])  # fmt: skip
def test_maps_are_the_published_ones_of_each_image_and_their_mean_over_layers(tokens, text, kind, cls_path, patch_path):
    cosine, surgery = (heatmaps(tokens, text, kind, similarity=similarity) for similarity in ("cosine", "surgery"))
    cls, patches = getattr(tokens, cls_path)[:, :, 0], getattr(tokens, patch_path)[:, :, 1:]
    for image in range(3):
        expected = (patches[:, image] @ text.T).mean(dim=0).T.view(6, 4, 5)
        torch.testing.assert_close(cosine[image], expected, atol=1e-6, rtol=1e-5)
        layers = [published_surgery(patches[layer, image], cls[layer, image], text) for layer in range(2)]
        expected = torch.stack(layers).mean(dim=0).T.reshape(6, 4, 5)
        torch.testing.assert_close(surgery[image], expected, atol=1e-6, rtol=1e-5)


def test_known_error_03_kind_silently_ignored(tokens, text):
    cosine = {kind: heatmaps(tokens, text, kind) for kind in HEATMAP_KINDS}
    surgery = {kind: heatmaps(tokens, text, kind, similarity="surgery") for kind in HEATMAP_KINDS}
    for maps in (cosine, surgery):
        assert torch.equal(maps["standard"], maps["vv_qk"])
        assert (maps["standard"] - maps["vv_vv"]).abs().max() > 0.1
    assert torch.equal(cosine["vv_vv"], cosine["vv_mixed"])
    assert (surgery["vv_vv"] - surgery["vv_mixed"]).abs().max() > 0.01


def test_redundant_feature_is_subtracted(tokens, text):
    redundant = unit(random(16, seed=3))
    maps = heatmaps(tokens, text[:1], "vv_vv", similarity="surgery", redundant=redundant)
    expected = (tokens.vv[:, :, 1:] @ (text[0] - redundant)).mean(dim=0).view(3, 1, 4, 5)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("cut", "options", "message"), [
    ((6, 16), {"kind": "vv"}, "standard, vv_qk, vv_vv, vv_mixed"),
    ((6, 16), {"similarity": "dot"}, "cosine, surgery"),
    ((6, 8), {}, r"\[C, 16\]"),
    ((1, 16), {"similarity": "surgery"}, "redundant="),  # would be zero everywhere: what to pass
    ((6, 16), {"similarity": "surgery", "redundant": torch.ones(3, 16)}, "one feature"),
    ((6, 16), {"redundant": torch.ones(16)}, "surgery"),
])  # fmt: skip
def test_bad_arguments(tokens, text, cut, options, message):
    refused(heatmaps, ParameterError, message, tokens, text[: cut[0], : cut[1]], **options)


@pytest.mark.parametrize("kinds", [["vv_vv", "vv_vv"], [], "vv_vv", None])
def test_lists_of_kinds_that_cannot_be(kinds):
    refused(check_kinds, ParameterError, r"kinds is .*name one or more of .*, each once", kinds)


def test_no_images_one_class_and_other_numbers(tokens, text):
    none = ImageTokens(tokens.qk[:, :0], tokens.vv[:, :0], tokens.features[:, :0], tokens.grid)
    assert heatmaps(none, text).shape == heatmaps(none, text, similarity="surgery").shape == (0, 6, 4, 5)
    assert heatmaps(tokens, text[:1]).shape == (3, 1, 4, 5)
    assert heatmaps(tokens, text.double()).dtype == torch.float32


def test_upsampling_is_the_one_that_boxes_are_found_on(tokens, text):
    maps = heatmaps(tokens, text)
    large = upsample(maps, (224, 224))
    np.testing.assert_allclose(large[1, 2].numpy(), resize_map(maps[1, 2], 224), atol=1e-6)


def test_a_setting_by_the_names_of_the_notebooks_and_in_words():
    setting = Setting(
        "standard", "surgery", 3, (60, 90), min_side=9, max_side=99, box_score="max", nms_iou=0.5, floor=0.25
    )  # fmt: skip
    parameters = setting.parameters()
    assert parameters == {
        "kind": "standard", "similarity": "surgery", "last_layers": 3, "percentile": [60, 90], "min_side": 9,
        "max_side": 99, "box_score": "max", "nms_iou": 0.5, "floor": 0.25, "adapter": None,
    }  # fmt: skip
    assert Setting.of(parameters | {"adapter": "a/folder", "seed": 1}) == setting
    assert Setting.of({"kind": None, "percentile": 90}, kind="vv_vv") == Setting("vv_vv", percentile=90)
    assert setting.describe() == (
        "standard, surgery, mean of the last 3 layers, percentile 60 + 90, floor 0.25, NMS at 0.5, sides > 9, "
        "sides ≤ 99, score max"
    )
    adapted = Setting("vv_mixed", "cosine", 3, adapter="0123456789ab")
    assert adapted.describe() == "vv_mixed, cosine, adapter on the last 3 layers, percentile 75"
    assert adapted.describe_maps() == "cosine similarity, adapter on the last 3 layers"
    assert setting.describe_maps() == "surgery similarity, mean of the last 3 layers"
    assert Setting(floor=-0.012345).describe() == "vv_mixed, cosine, percentile 75, floor -0.0123"
    assert Setting(percentile="otsu").describe() == "vv_mixed, cosine, Otsu's threshold"


def test_names_with_the_same_maps_stand_together_and_equal_boxes_have_equal_keys():
    settings = {kind: Setting(kind) for kind in HEATMAP_KINDS}
    assert list(joint_names(settings)) == ["standard = vv_qk", "vv_vv = vv_mixed"]
    assert list(joint_names({kind: Setting(kind, "surgery") for kind in HEATMAP_KINDS})) == [
        "standard = vv_qk", "vv_vv", "vv_mixed",
    ]  # fmt: skip
    adapted = [Setting(kind, layers=3, adapter="x") for kind in ("standard", "vv_mixed")]
    assert len({*(s.maps_key for s in adapted), Setting(layers=3).maps_key, Setting().maps_key}) == 4
    assert Setting("vv_vv").key == Setting().key != Setting(percentile=80).key != Setting(min_side=6).key
    assert Setting("vv_vv", "surgery").key != Setting("vv_mixed", "surgery").key


@pytest.mark.parametrize(("bad", "match"), [
    ({"kind": "vv"}, "unknown heatmap kind 'vv'; choose from standard, vv_qk, vv_vv, vv_mixed"),
    ({"kind": None}, "unknown heatmap kind None"),
    ({"similarity": "dot"}, "similarity must be 'cosine' or 'surgery', got 'dot'"),
    ({"layers": 0}, "layers must be greater than or equal to 1, got 0"),
    ({"layers": True}, "layers .*got True"),
    ({"layers": 1.5}, "layers .*got 1.5"),
    ({"similarity": "surgery", "adapter": "x"}, "trained on cosine maps, similarity is 'surgery'"),
])  # fmt: skip
def test_settings_that_cannot_be(bad, match):
    refused(Setting, ParameterError, match, **bad)
    if "layers" in bad:
        refused(Setting.of, ParameterError, "last_" + match, {"last_layers": bad["layers"]})
