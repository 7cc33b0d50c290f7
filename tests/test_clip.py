from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from tiny_models import TINY_CONFIG, TINY_VISION, load_tiny, random, unit, write_config, write_model

from surgerylib import clip as clip_module
from surgerylib.clip import interpolate_positions, load_clip, open_clip
from surgerylib.errors import ParameterError, SurgeryWarning, UnsupportedModelError


def images(batch: int, size: int = 32) -> torch.Tensor:
    return random(batch, 3, size, size)


@torch.no_grad()
def stock_layers(model, batch: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens before the first block and behind every block of the stock model, by hooks: [B, 1+N, W] each."""
    outputs, first = [], []
    blocks = model.visual.transformer.resblocks
    hooks = [block.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for block in blocks]
    hooks.append(blocks[0].register_forward_pre_hook(lambda _m, args: first.append(args[0])))
    model.encode_image(batch)
    for hook in hooks:
        hook.remove()
    return first[0], outputs


@torch.no_grad()
def vv_by_definition(model, batch: torch.Tensor, depth: int) -> list[torch.Tensor]:
    """The VV stream behind each of the last blocks, written head by head from DESIGN's definition."""
    first, outputs = stock_layers(model, batch)
    inputs = [first, *outputs[:-1]][-depth:]
    vv, streams = inputs[0], []
    for block, x in zip(model.visual.transformer.resblocks[-depth:], inputs, strict=True):
        weight, bias = block.attn.in_proj_weight.chunk(3)[2], block.attn.in_proj_bias.chunk(3)[2]
        heads = (block.ln_1(x) @ weight.T + bias).chunk(block.attn.num_heads, dim=-1)
        scale = heads[0].shape[-1] ** -0.5
        attended = [torch.softmax(scale * head @ head.transpose(1, 2), dim=-1) @ head for head in heads]
        vv = vv + block.attn.out_proj(torch.cat(attended, dim=-1))
        streams.append(vv)
    return streams


def test_qk_path_is_stock_encode_image(tiny):
    tokens = tiny.encode_image(images(3))
    assert tokens.qk.shape == tokens.vv.shape == (1, 3, 17, 24)
    assert tokens.grid == (4, 4)
    torch.testing.assert_close(tokens.qk[0, :, 0], unit(tiny.model.encode_image(images(3))), rtol=1e-5, atol=1e-6)
    assert tiny.self_check_error < 1e-5
    assert tiny.encode_image(images(0)).vv.shape == (1, 0, 17, 24)


def test_every_layer_matches_the_stock_stream(tiny):
    batch = images(2)
    tokens = tiny.encode_image(batch, last_layers=3)
    expected = torch.stack([unit(tiny._project(out)) for out in stock_layers(tiny.model, batch)[1][-3:]])
    torch.testing.assert_close(tokens.qk, expected, rtol=1e-4, atol=1e-6)
    for name in ("qk", "vv", "features"):
        assert torch.equal(getattr(tokens.last(1), name), getattr(tiny.encode_image(batch), name))


def test_known_error_06_layer_features_normalised_before_ln_post(tiny):
    batch = images(2)
    _, outputs = stock_layers(tiny.model, batch)
    features = tiny.encode_image(batch, last_layers=3).features
    torch.testing.assert_close(features, torch.stack([out[:, 1:] for out in outputs[-3:]]), rtol=1e-4, atol=1e-5)
    assert (features.norm(dim=-1) - 1).abs().min() > 0.1


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_known_error_05_vv_path_given_the_mlp_or_its_own_v(tiny_folder, depth):
    model = load_tiny(tiny_folder, depth)
    batch = images(2)
    tokens = model.encode_image(batch, last_layers=depth)
    expected = torch.stack([unit(model._project(vv)) for vv in vv_by_definition(model.model, batch, depth)])
    torch.testing.assert_close(tokens.vv, expected, rtol=1e-4, atol=1e-6)
    assert (tokens.vv - tokens.qk).abs().max() > 0.1


def test_known_error_04_v_normalised_then_scaled(tiny):
    batch = images(2)
    tokens = tiny.encode_image(batch, return_attention=True)
    block = tiny.model.visual.transformer.resblocks[-1]
    _, outputs = stock_layers(tiny.model, batch)
    qkv = block.ln_1(outputs[-2]) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    q, k, v = (part.view(2, 17, 4, 16).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    for weights, left, right in ((tokens.qk_attention, q, k), (tokens.vv_attention, v, v)):
        assert weights.shape == (2, 4, 17, 17)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 17))
        expected = torch.softmax(left @ right.transpose(2, 3) / math.sqrt(16), dim=-1)
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    normalised = torch.softmax(unit(v) @ unit(v).transpose(2, 3) / math.sqrt(16), dim=-1)
    assert normalised.max() < 1.5 / 17 < tokens.vv_attention.max()  # what the error looks like: almost uniform


def test_known_error_09_sequence_first_told_apart_by_dimensions(tiny):
    batch = images(17)  # as many images as tokens
    alone = torch.cat([tiny.encode_image(image[None]).vv for image in batch], dim=1)
    torch.testing.assert_close(tiny.encode_image(batch).vv, alone, rtol=1e-4, atol=1e-5)


def test_known_error_10_position_embeddings_overwritten_on_resize(tiny):
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    first, large, again = (tiny.encode_image(images(2, size)) for size in (32, 64, 32))
    assert large.grid == (8, 8)
    assert torch.equal(first.qk, again.qk)
    assert torch.equal(first.vv, again.vv)
    assert all(torch.equal(before[key], value) for key, value in tiny.model.state_dict().items())


def test_known_error_11_text_encoded_anew_in_every_step(tiny, monkeypatch):
    calls = []
    encode = tiny._encode_prompts
    monkeypatch.setattr(tiny, "_encode_prompts", lambda prompts: (calls.append(len(prompts)), encode(prompts))[1])
    names = ["red kite", "blue kite"]
    first = tiny.encode_text(names, ("a {}.", "the {}."))
    kept = first.clone()
    first.mul_(0)  # the caller's own copy
    assert torch.equal(tiny.encode_text(names, ("a {}.", "the {}.")), kept)
    assert calls == [4]


def test_text_is_the_stock_models_mean_over_templates_renormalised(tiny):
    # the second is cut; the first alone is shorter than with it
    templates = ("a {}", "a satellite photo of a {} beside the river, with a red roof seen from far above")
    prompts = [template.format("ship") for template in templates]
    stock = unit(tiny.model.encode_text(tiny._tokenizer(prompts)))
    torch.testing.assert_close(tiny.encode_text(["ship"], templates)[0], unit(stock.sum(dim=0)), rtol=1e-5, atol=1e-6)
    for template, expected in zip(templates, stock, strict=True):
        torch.testing.assert_close(tiny.encode_text(["ship"], [template])[0], expected, rtol=1e-5, atol=1e-6)
    assert tiny.encode_text([]).shape == (0, 24)
    refused(tiny.encode_text, ParameterError, r"needs a \{\}", ["ship"], ("a ship",))
    refused(tiny.encode_text, ParameterError, "put it in a list", "ship")


def test_known_error_12_class_name_asked_in_its_xml_spelling(tiny):
    assert torch.equal(tiny.encode_text(["golffield", "ship"]), tiny.encode_text(["golf course", "ship"]))
    assert not torch.equal(tiny.encode_text(["golf-field"]), tiny.encode_text(["golf course"]))  # free text stays


def test_position_interpolation_agrees_with_open_clip(tiny):
    visual = tiny.model.visual
    state = {"visual.positional_embedding": visual.positional_embedding.clone()}
    larger = open_clip.CLIP(**{**TINY_CONFIG, "vision_cfg": {**TINY_VISION, "image_size": 48}})
    open_clip.model.resize_pos_embed(state, larger)
    ours = interpolate_positions(visual.positional_embedding, (4, 4), (6, 6))
    torch.testing.assert_close(ours, state["visual.positional_embedding"])


@pytest.mark.parametrize("shape", [(50, 40), (32, 32), (7, 90)])
def test_preprocess_squashes_the_whole_image_like_pillow(tiny, shape):
    # away from 0 and 255: where the cubic overshoots, Pillow and torch clamp after different passes
    image = np.random.default_rng(0).integers(80, 176, (*shape, 3), dtype=np.uint8)
    reference = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    pixels = tiny.preprocess(image) * tiny._std + tiny._mean
    assert pixels.shape == (3, 32, 32)
    difference = np.abs(pixels.permute(1, 2, 0).numpy() * 255 - reference)
    assert difference.max() <= 1.01  # one grey level: both round twice


@pytest.mark.parametrize("bad", [
    np.zeros((4, 4, 3)), Image.new("RGB", (4, 4)), *(np.zeros(s, np.uint8) for s in ((4, 4), (3, 4, 4), (0, 4, 3)))
])  # fmt: skip
def test_preprocess_refuses_what_is_not_rgb_uint8(tiny, bad):
    refused(tiny.preprocess, ParameterError, "uint8", bad)


def test_attention_class_of_newer_open_clip(tmp_path):
    config = {**TINY_CONFIG, "vision_cfg": {**TINY_VISION, "block_type": "custom"}}
    model = load_tiny(write_model(tmp_path, config), depth=2)
    assert isinstance(model.model.visual.transformer.resblocks[0].attn, open_clip.transformer.Attention)
    expected = unit(model._project(vv_by_definition(model.model, images(2), 2)[-1]))
    torch.testing.assert_close(model.encode_image(images(2)).vv[0], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("part", "change", "says"), [
    ("vision_cfg", {"qk_norm": True}, "modifies its attention"),
    ("vision_cfg", {"scale_heads": True}, "modifies its attention"),
    ("vision_cfg", {"pool_type": "avg"}, "class token"),
    ("vision_cfg", {"layers": [1, 1, 1, 1], "width": 8}, "ModifiedResNet"),
    ("vision_cfg", {"layers": 0}, "without a single block"),
    ("text_cfg", {"context_length": 0}, "open_clip_config.json"),
    ("text_cfg", {"vocab_size": 10}, "open_clip_config.json"),
    ("preprocess_cfg", {"mean": [0.5, 0.5]}, "three numbers are needed"),
    ("preprocess_cfg", {"mean": "grey"}, "three numbers are needed"),
    *(("preprocess_cfg", {"std": [0.2, wrong, 0.2]}, "three numbers above 0") for wrong in (0.0, float("nan"))),
])  # fmt: skip
def test_configurations_that_cannot_work_or_that_the_dual_path_cannot_reproduce(tmp_path, part, change, says):
    changed = TINY_CONFIG | {part: {**TINY_CONFIG.get(part, {}), **change}}
    pixels = changed.pop("preprocess_cfg", None)
    refused(load_tiny, UnsupportedModelError, says, write_config(tmp_path, changed, pixels), checkpoint="random")


def test_failing_self_check_is_a_typed_error(tiny_folder, monkeypatch):
    monkeypatch.setattr(clip_module.attention, "attend", lambda q, k, v: v)
    refused(load_tiny, UnsupportedModelError, "differs from stock open_clip", tiny_folder)


def test_image_size_and_depth_of_the_caller(tiny_folder):
    model = load_tiny(tiny_folder, image_size=64, depth=6)
    assert model.grid == model.encode_image(model.preprocess(np.zeros((10, 20, 3), np.uint8))[None]).grid == (8, 8)
    assert model.depth == 4  # all blocks there are


@pytest.mark.parametrize(("options", "says"), [
    ({"image_size": 60}, "multiple of the patch"),
    *(({"image_size": size}, "image_size must be a whole number of at least 1") for size in (0, 32.0, "32")),
    *(({"depth": depth}, "depth must be a whole number") for depth in (0, 1.5)),
    ({"device": "gpu"}, "device 'gpu'"),
])  # fmt: skip
def test_parameters_of_loading_out_of_range(tiny_folder, options, says):
    refused(load_tiny, ParameterError, says, tiny_folder, **options)


@pytest.mark.parametrize(("given", "says"), [
    ((images(1), 0), r"last_layers must lie in 1\.\.3"), ((images(1), 4), r"last_layers must lie in 1\.\.3"),
    ((images(1)[0],), "images must be"), ((images(1, size=36),), "multiple of the patch"),
])  # fmt: skip
def test_parameters_of_encoding_out_of_range(tiny, given, says):
    refused(tiny.encode_image, ParameterError, says, *given)


def test_a_model_that_open_clip_does_not_know():
    refused(load_clip, ParameterError, "ViT-B-32", "ViT-B32", "random")


def test_random_weights_are_said_and_repeatable(tiny_folder):
    with pytest.warns(SurgeryWarning, match="random"):
        first = load_tiny(tiny_folder, checkpoint=None)
    assert first.weights.sha256 == load_tiny(tiny_folder, checkpoint="random").weights.sha256
    assert "random" in first.weights.source


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_on_cuda_stays_near_the_cpu(tiny_folder):
    cpu, cuda = (load_tiny(tiny_folder, device=device).encode_image(images(4)).vv.cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(cuda, cpu, rtol=0, atol=0.03)
