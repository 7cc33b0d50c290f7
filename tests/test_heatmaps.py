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

# two layers, three images, a grid of 4 x 5 patches, 16 dimensions
TOKENS = ImageTokens(unit(random(2, 3, 21, 16)), unit(random(2, 3, 21, 16, seed=1)), random(2, 3, 20, 8), (4, 5))
TEXT = unit(random(6, 16, seed=2))


def published_surgery(patches: torch.Tensor, cls: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """One image, elementwise as published: [N, C, D] products, weighted, minus their mean over classes."""
    probability = torch.softmax(2 * cls @ text.T, dim=-1)
    weight = probability / probability.mean()
    products = patches[:, None, :] * text[None, :, :] * weight[None, :, None]
    return (products - products.mean(dim=1, keepdim=True)).sum(dim=-1)


@pytest.mark.parametrize(("kind", "cls_path", "patch_path"), [
    ("standard", "qk", "qk"), ("vv_qk", "qk", "qk"), ("vv_vv", "vv", "vv"), ("vv_mixed", "qk", "vv")
])  # fmt: skip
def test_maps_are_the_published_ones_of_each_image_and_their_mean_over_layers(kind, cls_path, patch_path):
    cls, patches = getattr(TOKENS, cls_path)[:, :, 0], getattr(TOKENS, patch_path)[:, :, 1:]
    for similarity, published in (("cosine", lambda p, _, t: p @ t.T), ("surgery", published_surgery)):
        maps = heatmaps(TOKENS, TEXT, kind, similarity=similarity)
        for image in range(3):
            layers = torch.stack([published(patches[layer, image], cls[layer, image], TEXT) for layer in range(2)])
            expected = layers.mean(dim=0).T.reshape(6, 4, 5)
            torch.testing.assert_close(maps[image], expected, atol=1e-6, rtol=1e-5)


def test_known_error_03_kind_silently_ignored():
    cosine = {kind: heatmaps(TOKENS, TEXT, kind) for kind in HEATMAP_KINDS}
    surgery = {kind: heatmaps(TOKENS, TEXT, kind, similarity="surgery") for kind in HEATMAP_KINDS}
    for maps in (cosine, surgery):
        assert torch.equal(maps["standard"], maps["vv_qk"])
        assert (maps["standard"] - maps["vv_vv"]).abs().max() > 0.1
    assert torch.equal(cosine["vv_vv"], cosine["vv_mixed"])
    assert (surgery["vv_vv"] - surgery["vv_mixed"]).abs().max() > 0.01


def test_redundant_feature_is_subtracted():
    redundant = unit(random(16, seed=3))
    maps = heatmaps(TOKENS, TEXT[:1], "vv_vv", similarity="surgery", redundant=redundant)
    expected = (TOKENS.vv[:, :, 1:] @ (TEXT[0] - redundant)).mean(dim=0).view(3, 1, 4, 5)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("cut", "options", "message"), [
    (..., {"kind": "vv"}, "standard, vv_qk, vv_vv, vv_mixed"),
    (..., {"similarity": "dot"}, "cosine, surgery"),
    ((..., slice(8)), {}, r"\[C, 16\]"),
    (slice(1), {"similarity": "surgery"}, "redundant="),  # would be zero everywhere: what to pass
    (..., {"similarity": "surgery", "redundant": torch.ones(3, 16)}, "one feature"),
    (..., {"redundant": torch.ones(16)}, "surgery"),
])  # fmt: skip
def test_bad_arguments(cut, options, message):
    refused(heatmaps, ParameterError, message, TOKENS, TEXT[cut], **options)


@pytest.mark.parametrize("kinds", [["vv_vv", "vv_vv"], [], "vv_vv", None])
def test_lists_of_kinds_that_cannot_be(kinds):
    refused(check_kinds, ParameterError, r"kinds is .*name one or more of .*, each once", kinds)


def test_no_images_one_class_and_other_numbers():
    none = ImageTokens(TOKENS.qk[:, :0], TOKENS.vv[:, :0], TOKENS.features[:, :0], TOKENS.grid)
    assert heatmaps(none, TEXT).shape == heatmaps(none, TEXT, similarity="surgery").shape == (0, 6, 4, 5)
    assert heatmaps(TOKENS, TEXT[:1]).shape == (3, 1, 4, 5)
    assert heatmaps(TOKENS, TEXT.double()).dtype == torch.float32


def test_upsampling_is_the_one_that_boxes_are_found_on():
    maps = heatmaps(TOKENS, TEXT)
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
    ({"similarity": "dot"}, "similarity must be 'cosine' or 'surgery', got 'dot'"),
    ({"layers": 0}, "layers must be greater than or equal to 1, got 0"),
    ({"layers": True}, "layers .*got True"),
    ({"similarity": "surgery", "adapter": "x"}, "trained on cosine maps, similarity is 'surgery'"),
])  # fmt: skip
def test_settings_that_cannot_be(bad, match):
    refused(Setting, ParameterError, match, **bad)
    if "layers" in bad:
        refused(Setting.of, ParameterError, "last_" + match, {"last_layers": bad["layers"]})
