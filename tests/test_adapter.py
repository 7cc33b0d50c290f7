"""The heatmap adapter on its own: what it computes, that it changes nothing before training, and its file."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from tiny_models import write_model

from surgerylib.adapter import HeatmapAdapter, clip_and_tokens, load_adapter, untrained_adapter
from surgerylib.clip import ImageTokens, load_clip
from surgerylib.errors import CheckpointError, ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS, heatmaps
from surgerylib.localizer import GTClassLocalizer
from surgerylib.weights import save_trained

NAMES = ["ship", "harbor", "airplane", "storage tank", "golf course"]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def changed(model: HeatmapAdapter, seed: int = 5) -> HeatmapAdapter:
    """As if it had been trained: no parameter is where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


@pytest.fixture(scope="module")
def tokens(tiny) -> dict[int, ImageTokens]:
    """last_layers -> the tokens of two images."""
    pixels = torch.stack([tiny.preprocess((255 * random(40, 50, 3, seed=k).sigmoid()).byte().numpy()) for k in (1, 2)])
    return {layers: tiny.encode_image(pixels, layers) for layers in (1, 2, 3)}


@pytest.fixture(scope="module")
def text(tiny) -> torch.Tensor:
    return tiny.encode_text(NAMES)


# ----------------------------------------------------------------------------------------- before any training


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", HEATMAP_KINDS)
def test_an_untrained_adapter_changes_nothing_bit_for_bit(tiny, tokens, text, kind, layers):
    empty = tiny.encode_text([""], ["{}"])[0]
    model = HeatmapAdapter(tiny.embed_dim, layers)
    for options in ({"similarity": "cosine"}, {"similarity": "surgery"}, {"similarity": "surgery", "redundant": empty}):
        plain = heatmaps(tokens[layers], text, kind, **options)
        assert torch.equal(heatmaps(tokens[layers], text, kind, **options, adapter=model), plain)
        # that it was asked at all: trained, it changes every one of these maps
        other = heatmaps(tokens[layers], text, kind, **options, adapter=changed(HeatmapAdapter(24, layers)))
        assert not torch.allclose(other, plain, atol=1e-3)


def test_the_seed_decides_where_it_starts_and_the_callers_generator_is_left_alone():
    config = {"embed_dim": 24, "num_layers": 3, "rank": 8}
    state = torch.get_rng_state()
    one, same, other = (untrained_adapter(config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.down.weight, same.down.weight)
    assert not torch.equal(one.down.weight, other.down.weight)
    assert not one.training
    assert one.config == config


# ------------------------------------------------------------------------------------------------------ any text


def test_any_text_and_any_number_of_classes(tiny, tokens):
    model = changed(HeatmapAdapter(tiny.embed_dim, 3))
    for names in (["a red zeppelin over a swamp"], ["ship", "where the river ends"], [f"w{k}" for k in range(40)]):
        maps = heatmaps(tokens[3], tiny.encode_text(names, ["{}"]), adapter=model)
        assert maps.shape == (2, len(names), *tiny.grid)
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()
        assert (maps.amax(dim=(2, 3)) - maps.amin(dim=(2, 3))).min() > 1e-3  # maps, not constants


def test_it_sees_one_patch_at_a_time(tiny):
    """What another patch or another image says changes nothing."""
    model = changed(HeatmapAdapter(24, 3)).double()
    patches, text = unit(random(3, 2, 16, 24)), unit(random(5, 24, seed=1))
    maps = model(patches, text).flatten(2)
    other = patches.clone()
    other[:, 1] = unit(random(3, 16, 24, seed=2))
    other[:, 0, 3] = -other[:, 0, 3]
    moved = model(other, text).flatten(2)
    untouched = [k for k in range(16) if k != 3]
    torch.testing.assert_close(moved[0][:, untouched], maps[0][:, untouched], rtol=0, atol=1e-12)
    assert (moved[0, :, 3] - maps[0, :, 3]).abs().min() > 1e-3


# --------------------------------------------------------------------------------------------------- its formula


def slow_logits(model: HeatmapAdapter, patches: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The docstring's formula, term by term: [L, B, N, D] and [C, D] -> [B, C, N]."""
    w = model.state_dict()
    z = torch.einsum("rd,lbnd->lbnr", w["down.weight"], patches) + w["down.bias"]
    hidden = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    tokens = patches + torch.einsum("dr,lbnr->lbnd", w["up.weight"], hidden)
    mean = sum((1 + weight) * of_layer for weight, of_layer in zip(w["layer_offsets"], tokens, strict=True)) / len(
        tokens
    )
    return math.exp(10 * w["log_scale"]) * torch.einsum("bnd,cd->bcn", mean, text) + 10 * w["bias"]


@pytest.mark.parametrize("layers", [1, 3])
def test_the_logits_are_those_of_the_formula(layers):
    model = changed(HeatmapAdapter(7, layers, rank=4)).double()
    patches, text = unit(random(layers, 2, 6, 7)), unit(random(3, 7, seed=1))
    expected = slow_logits(model, patches, text).view(2, 3, 2, 3)
    torch.testing.assert_close(model(patches, text, (2, 3)), expected, rtol=0, atol=1e-12)
    cls = torch.zeros(layers, 2, 1, 7, dtype=torch.float64)
    path = torch.cat([cls, patches], dim=2)
    of_tokens = ImageTokens(torch.zeros_like(path), path, torch.zeros(layers, 2, 6, 3), (2, 3))
    torch.testing.assert_close(heatmaps(of_tokens, text, adapter=model), expected, rtol=0, atol=1e-12)


def test_after_one_step_the_gradient_reaches_every_parameter():
    """`up` is zero at first: what lies before it, `down`, has no gradient in the first step, and one in the second."""
    torch.manual_seed(0)
    model = HeatmapAdapter(24, 3)
    patches, text = unit(random(3, 2, 16, 24)).float(), unit(random(5, 24, seed=1)).float()
    wanted = random(2, 5, 4, 4, seed=2).float()

    def gradients() -> dict[str, float]:
        model.zero_grad()
        (model(patches, text) - wanted).square().mean().backward()
        return {name: float(value.grad.abs().max()) for name, value in model.named_parameters()}

    first = gradients()
    assert {name for name, size in first.items() if size == 0} == {"down.weight", "down.bias"}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert min(gradients().values()) > 0


def test_nothing_of_the_clip_is_trained_and_the_size_is_small(tiny):
    model = HeatmapAdapter(tiny.embed_dim, 3, rank=8)
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in tiny.model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 2 * 24 * 8 + 8 + 3 + 2  # V, U, v, layers, scale, bias


# --------------------------------------------------------------------------------------- shapes that do not fit


@pytest.mark.parametrize(("patches", "text", "grid", "message"), [
    ((2, 2, 16, 24), (5, 24), None, r"\[3, B, N, 24\], got \[2, 2, 16, 24\]"),
    ((3, 2, 16, 32), (5, 32), None, r"\[3, B, N, 24\], got \[3, 2, 16, 32\]"),
    ((3, 16, 24), (5, 24), None, r"\[3, B, N, 24\], got \[3, 16, 24\]"),
    ((3, 2, 16, 24), (5, 24), (4, 5), "16 patches are not a grid of 4 x 5"),
    ((3, 2, 15, 24), (5, 24), None, "15 patches are not a grid of 3 x 3"),
    ((3, 2, 16, 24), (5, 32), None, r"\[C, 24\] for this adapter, got \[5, 32\]"),
    ((3, 2, 16, 24), (24,), None, r"\[C, 24\] for this adapter, got \[24\]"),
])  # fmt: skip
def test_shapes_that_do_not_fit(patches, text, grid, message):
    with pytest.raises(ParameterError, match=message) as raised:
        HeatmapAdapter(24, 3)(torch.zeros(patches), torch.zeros(text), grid)
    assert "\n" not in str(raised.value)


def test_tokens_and_text_of_another_model_are_refused_by_heatmaps_too(tokens, text):
    for layers, model in ((2, HeatmapAdapter(24, 3)), (3, HeatmapAdapter(32, 3)), (3, HeatmapAdapter(24, 1))):
        got = rf"\[{model.num_layers}, B, N, {model.embed_dim}\], got \[{layers}, 2, 16, 24\]"
        with pytest.raises(ParameterError, match=got):
            heatmaps(tokens[layers], text, adapter=model)
    with pytest.raises(ParameterError, match=r"\[C, 24\] for these tokens, got \[5, 16\]"):
        heatmaps(tokens[3], text[:, :16], adapter=HeatmapAdapter(24, 3))
    with pytest.raises(ParameterError, match="at least two classes, got 1"):
        heatmaps(tokens[3], text[:1], similarity="surgery", adapter=HeatmapAdapter(24, 3))


@pytest.mark.parametrize("wrong", [{"embed_dim": 0}, {"num_layers": 0}, {"rank": 0}, {"rank": 2.0}, {"rank": True}])
def test_sizes_that_cannot_be(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        HeatmapAdapter(**{"embed_dim": 24, "num_layers": 3, **wrong})


# ------------------------------------------------------------------------------------------------------ its file


@pytest.fixture
def saved(tiny, tmp_path):
    model = changed(HeatmapAdapter(tiny.embed_dim, 3, rank=8))
    about = {"belongs_to": clip_and_tokens(tiny, "vv_mixed", 3), "epoch": 3, "seen_classes": ["ship"]}
    return (
        save_trained(tmp_path / "adapter.safetensors", "adapter", model.config, model.state_dict(), about),
        model,
        about,
    )


def refused(path, match: str, **options) -> None:
    with pytest.raises(CheckpointError, match=match) as raised:
        load_adapter(path, **options)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_saved_adapter_comes_back_whole(saved, tiny, tokens, text):
    path, model, about = saved
    loaded, read = load_adapter(path, belongs_to=clip_and_tokens(tiny, "vv_mixed", 3))
    assert read == about
    assert loaded.config == {"embed_dim": 24, "num_layers": 3, "rank": 8}
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(heatmaps(tokens[3], text, adapter=loaded), heatmaps(tokens[3], text, adapter=model))


def test_equal_adapters_are_equal_files(saved, tmp_path):
    path, model, about = saved
    for k in range(6):  # metadata of several entries comes in another order each time
        again = save_trained(tmp_path / f"{k}.safetensors", "adapter", model.config, model.state_dict(), about)
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kinds", [("vv_mixed", "vv_vv"), ("standard", "vv_qk")])
def test_it_serves_the_kinds_that_share_its_patches_and_no_other(tiny, tmp_path, kinds):
    model = HeatmapAdapter(tiny.embed_dim, 3)
    about = {"belongs_to": clip_and_tokens(tiny, kinds[0], 3)}
    path = save_trained(tmp_path / "a.safetensors", "adapter", model.config, model.state_dict(), about)
    for kind in HEATMAP_KINDS:
        belongs_to = clip_and_tokens(tiny, kind, 3)
        if kind in kinds:
            load_adapter(path, belongs_to=belongs_to)
        else:
            refused(path, "patches: ", belongs_to=belongs_to)


def test_an_adapter_of_another_clip_or_number_of_layers_is_refused(saved, tiny, tmp_path):
    path, _, _ = saved
    folder = write_model(tmp_path / "other", seed=8)
    other = load_clip(f"local-dir:{folder}", str(folder / "model.safetensors"), device="cpu", depth=3)
    refused(path, "weights_sha256", belongs_to=clip_and_tokens(other, "vv_mixed", 3))
    refused(path, "layers: 3 there, 2 here", belongs_to=clip_and_tokens(tiny, "vv_mixed", 2))
    assert "device" not in clip_and_tokens(tiny, "vv_mixed", 3)  # trained on a GPU, used on a CPU
    with pytest.raises(ParameterError, match="unknown heatmap kind"):
        clip_and_tokens(tiny, "vv", 3)


def test_files_that_are_no_adapter(saved, tiny_folder, tmp_path):
    path, model, about = saved
    refused(tmp_path / "nothing.safetensors", "no trained adapter")
    refused(tmp_path, "no trained adapter")  # a folder
    whole, weights = path.read_bytes(), model.state_dict()
    wrong = {"truncated": whole[:-100], "header": whole[:40], "empty": b"", "text": b"text"}
    for name, metadata in (("json", {"adapter": "{"}), ("list", {"adapter": "[1]"}), ("plain", None)):
        wrong[name] = safetensors.torch.save(weights, metadata=metadata)
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    for name, change in (("rank", {"rank": 4}), ("size", {"rank": 0}), ("unknown", {"depth": 4})):
        save_trained(tmp_path / name, "adapter", {**model.config, **change}, weights, about)
    save_trained(
        tmp_path / "less", "adapter", model.config, {k: v for k, v in weights.items() if k != "up.weight"}, about
    )
    head = GTClassLocalizer(5, 24)
    save_trained(tmp_path / "localizer", "localizer", head.config, head.state_dict(), about)
    for name in (*wrong, "rank", "size", "unknown", "less", "localizer"):
        refused(tmp_path / name, "is not a trained adapter")
    refused(tiny_folder / "model.safetensors", "is not a trained adapter")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["up.weight", "bias"])
def test_weights_that_are_no_numbers(saved, tmp_path, name, value):
    _, model, about = saved
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    weights[name].view(-1)[0] = value
    refused(save_trained(tmp_path / "nan", "adapter", model.config, weights, about), "NaN or infinite")
