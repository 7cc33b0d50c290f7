"""The heatmap adapter on its own: what it computes, that it changes nothing before training, and its file."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from refusals import refused
from tiny_models import load_tiny, random, unit, write_model

from surgerylib.adapter import HeatmapAdapter, clip_and_tokens, load_adapter
from surgerylib.clip import ImageTokens
from surgerylib.errors import CheckpointError, ParameterError
from surgerylib.heatmaps import HEATMAP_KINDS, KIND_PATHS, heatmaps
from surgerylib.localizer import GTClassLocalizer
from surgerylib.weights import save_trained, untrained_model

NAMES = ["ship", "harbor", "airplane", "storage tank", "golf course"]


def changed(model: HeatmapAdapter) -> HeatmapAdapter:
    """As if it had been trained: no parameter is where it began."""
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter += 0.1 * random(*parameter.shape, seed=seed)
    return model


@pytest.fixture(scope="module")
def tokens(tiny) -> dict[int, ImageTokens]:
    """last_layers -> the tokens of two images."""
    pixels = torch.stack([tiny.preprocess((255 * random(40, 50, 3, seed=k).sigmoid()).byte().numpy()) for k in (1, 2)])
    return {layers: tiny.encode_image(pixels, layers) for layers in (1, 3)}


@pytest.fixture(scope="module")
def text(tiny) -> torch.Tensor:
    return tiny.encode_text(NAMES)


# ------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", HEATMAP_KINDS)
def test_an_untrained_adapter_changes_nothing_bit_for_bit(tiny, tokens, text, kind, layers):
    empty = tiny.encode_text([""], ["{}"])[0]
    model, trained = HeatmapAdapter(tiny.embed_dim, layers), changed(HeatmapAdapter(24, layers))
    for options in ({"similarity": "cosine"}, {"similarity": "surgery"}, {"similarity": "surgery", "redundant": empty}):
        plain = heatmaps(tokens[layers], text, kind, **options)
        assert torch.equal(heatmaps(tokens[layers], text, kind, **options, adapter=model), plain)
        # that it was asked at all: trained, it changes every one of these maps
        assert not torch.allclose(heatmaps(tokens[layers], text, kind, **options, adapter=trained), plain, atol=1e-3)


def test_the_seed_decides_where_it_starts_and_the_callers_generator_is_left_alone():
    config = {"embed_dim": 24, "num_layers": 3, "rank": 8}
    state = torch.get_rng_state()
    one, same, other = (untrained_model(HeatmapAdapter, config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.down.weight, same.down.weight)
    assert not torch.equal(one.down.weight, other.down.weight)
    assert not one.training
    assert one.config == config


def slow_logits(model: HeatmapAdapter, patches: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The docstring's formula, term by term: [L, B, N, D] and [C, D] -> [B, C, N]."""
    w = model.state_dict()
    z = torch.einsum("rd,lbnd->lbnr", w["down.weight"], patches) + w["down.bias"]
    hidden = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    tokens = patches + torch.einsum("dr,lbnr->lbnd", w["up.weight"], hidden)
    mean = ((1 + w["layer_offsets"])[:, None, None, None] * tokens).sum(dim=0) / len(tokens)
    return math.exp(10 * w["log_scale"]) * torch.einsum("bnd,cd->bcn", mean, text) + 10 * w["bias"]


@pytest.mark.parametrize("layers", [1, 3])
def test_the_logits_are_those_of_the_formula(layers):
    model = changed(HeatmapAdapter(7, layers, rank=4)).double()
    patches, text = unit(random(layers, 2, 6, 7).double()), unit(random(3, 7, seed=1).double())
    expected = slow_logits(model, patches, text).view(2, 3, 2, 3)
    torch.testing.assert_close(model(patches, text, (2, 3)), expected, rtol=0, atol=1e-12)
    path = torch.cat([torch.zeros(layers, 2, 1, 7), patches], dim=2)
    of_tokens = ImageTokens(torch.zeros_like(path), path, torch.zeros(layers, 2, 6, 3), (2, 3))
    torch.testing.assert_close(heatmaps(of_tokens, text, adapter=model), expected, rtol=0, atol=1e-12)


def test_after_one_step_the_gradient_reaches_every_parameter():
    """`up` is zero at first: what lies before it, `down`, has no gradient in the first step, and one in the second."""
    torch.manual_seed(0)
    model = HeatmapAdapter(24, 3)
    patches, text = unit(random(3, 2, 16, 24)), unit(random(5, 24, seed=1))
    wanted = random(2, 5, 4, 4, seed=2)

    for without in ({"down.weight", "down.bias"}, set()):
        model.zero_grad()
        (model(patches, text) - wanted).square().mean().backward()
        assert {name for name, value in model.named_parameters() if not value.grad.any()} == without
        torch.optim.SGD(model.parameters(), lr=0.1).step()


# ------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(("patches", "text", "grid", "message"), [
    ((2, 2, 16, 24), (5, 24), None, r"\[3, B, N, 24\], got \[2, 2, 16, 24\]"),
    ((3, 16, 24), (5, 24), None, r"\[3, B, N, 24\], got \[3, 16, 24\]"),
    ((3, 2, 16, 24), (5, 24), (4, 5), "16 patches are not a grid of 4 x 5"),
    ((3, 2, 15, 24), (5, 24), None, "15 patches are not a grid of 3 x 3"),
    ((3, 2, 16, 24), (5, 32), None, r"\[C, 24\] for this adapter, got \[5, 32\]"),
    ((3, 2, 16, 24), (24,), None, r"\[C, 24\] for this adapter, got \[24\]"),
])  # fmt: skip
def test_shapes_that_do_not_fit(patches, text, grid, message):
    refused(HeatmapAdapter(24, 3), ParameterError, message, torch.zeros(patches), torch.zeros(text), grid)


@pytest.mark.parametrize(("name", "size"), [("embed_dim", 0), ("num_layers", 0), ("rank", 2.0), ("rank", True)])
def test_sizes_that_cannot_be(name, size):
    refused(HeatmapAdapter, ParameterError, name, **{"embed_dim": 24, "num_layers": 3, name: size})


# ------------------------------------------------------------------------------------------------------ its file

MODEL = changed(HeatmapAdapter(24, 3, rank=8))


@pytest.fixture
def save(tiny, tmp_path):
    """A function that writes a file of that name: an adapter with some of its parts replaced."""

    def written(name="adapter", kind="vv_mixed", of="adapter", config=None, weights=None):
        about = {"belongs_to": clip_and_tokens(tiny, kind, 3), "epoch": 3, "seen_classes": ["ship"]}
        return save_trained(tmp_path / name, of, config or MODEL.config, weights or MODEL.state_dict(), about)

    return written


def not_loaded(path, match: str, **options) -> None:
    assert str(path) in refused(load_adapter, CheckpointError, match, path, **options)


def test_a_saved_adapter_comes_back_whole_and_equal_ones_are_equal_files(save, tiny, tokens, text):
    belongs_to = clip_and_tokens(tiny, "vv_mixed", 3)
    path = save()
    loaded, read = load_adapter(path, belongs_to=belongs_to)
    assert read == {"belongs_to": belongs_to, "epoch": 3, "seen_classes": ["ship"]}
    assert loaded.config == {"embed_dim": 24, "num_layers": 3, "rank": 8}
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in MODEL.state_dict().items())
    assert torch.equal(heatmaps(tokens[3], text, adapter=loaded), heatmaps(tokens[3], text, adapter=MODEL))
    # metadata of several entries comes in another order each time
    assert {save(f"{k}").read_bytes() for k in range(6)} == {path.read_bytes()}


@pytest.mark.parametrize("own", ["vv_mixed", "standard"])
def test_it_serves_the_kinds_that_share_its_patches_and_no_other(save, tiny, own):
    path = save(kind=own)
    for kind in HEATMAP_KINDS:
        if KIND_PATHS[kind][1] == KIND_PATHS[own][1]:
            load_adapter(path, belongs_to=clip_and_tokens(tiny, kind, 3))
        else:
            not_loaded(path, "patches: ", belongs_to=clip_and_tokens(tiny, kind, 3))


def test_an_adapter_of_another_clip_or_number_of_layers_is_refused(save, tiny, tmp_path):
    other = load_tiny(write_model(tmp_path / "other", seed=8))
    not_loaded(save(), "weights_sha256", belongs_to=clip_and_tokens(other, "vv_mixed", 3))
    not_loaded(save(), "layers: 3 there, 2 here", belongs_to=clip_and_tokens(tiny, "vv_mixed", 2))
    assert "device" not in clip_and_tokens(tiny, "vv_mixed", 3)  # trained on a GPU, used on a CPU
    refused(clip_and_tokens, ParameterError, "unknown heatmap kind", tiny, "vv", 3)


def test_files_that_are_no_adapter(save, tiny_folder, tmp_path):
    not_loaded(tmp_path / "nothing.safetensors", "no trained adapter")
    not_loaded(tmp_path, "no trained adapter")  # a folder
    whole, weights, head = save().read_bytes(), MODEL.state_dict(), GTClassLocalizer(5, 24)
    wrong = {"truncated": whole[:-100], "header": whole[:40], "empty": b"", "text": b"text"}
    for name, metadata in (("json", {"adapter": "{"}), ("list", {"adapter": "[1]"}), ("plain", None)):
        wrong[name] = safetensors.torch.save(weights, metadata=metadata)
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    paths = [save(f"config{k}", config={**MODEL.config, **change})
             for k, change in enumerate(({"rank": 4}, {"rank": 0}, {"depth": 4}))]  # fmt: skip
    paths.append(save("less", weights={name: value for name, value in weights.items() if name != "up.weight"}))
    paths.append(save("localizer", of="localizer", config=head.config, weights=head.state_dict()))
    for path in (*paths, *(tmp_path / name for name in wrong), tiny_folder / "model.safetensors"):
        not_loaded(path, "is not a trained adapter")


@pytest.mark.parametrize(("name", "value"), [("up.weight", math.nan), ("bias", math.inf)])
def test_weights_that_are_no_numbers(save, name, value):
    weights = MODEL.state_dict() | {name: torch.full_like(MODEL.state_dict()[name], value)}
    not_loaded(save(weights=weights), "NaN or infinite")
