from __future__ import annotations

import pytest
import torch
from refusals import refused

from surgerylib.errors import CheckpointError, ParameterError
from surgerylib.localizer import LOCALIZER_INPUTS, GTClassLocalizer, clip_and_maps, decode, load_localizer, to_grid
from surgerylib.losses import gt_class_localization_loss
from surgerylib.weights import save_trained


def inputs(batch: int = 2, classes: int = 5, side: int = 4, width: int = 24, layers: int = 3, size: int = 32):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(batch, 3, size, size, generator=generator),
        torch.rand(batch, classes, side, side, generator=generator),
        torch.randn(batch, layers, side * side, width, generator=generator),
    )


def head(classes: int = 5, width: int = 24, grid: tuple[int, int] = (7, 7), **options) -> GTClassLocalizer:
    torch.manual_seed(0)
    return GTClassLocalizer(classes, width, 3, grid, **options)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (16, 16), (1, 1), (3, 9)])
@pytest.mark.parametrize("classes", [1, 5])
def test_any_grid_and_any_number_of_classes(grid, classes):
    boxes = head(classes, grid=grid)(*inputs(classes=classes))
    assert boxes.shape == (2, classes, *grid, 4)
    assert 0 <= boxes.min() <= boxes.max() <= 1
    assert (boxes[..., 2:] >= boxes[..., :2]).all()


def test_decoding_starts_at_the_centre_of_the_cell():
    raw = torch.zeros(2, 4, 4)  # 2 rows, 4 columns: tanh 0, sigmoid 0.5
    boxes = decode(raw)
    assert boxes[1, 2].tolist() == [0.625 - 0.25, 0.75 - 0.25, 0.625 + 0.25, 1.0]
    raw[0, 0] = torch.tensor([100.0, -100.0, -100.0, 100.0])  # centre moved by half an image, no width, all height
    assert decode(raw)[0, 0].tolist() == pytest.approx([0.625, 0.0, 0.625, 0.25], abs=1e-6)


def test_every_trained_parameter_is_the_heads_or_the_encoders(tiny):
    """The CLIP is no part of the module: what it holds is its own, and nothing of CLIP gets a gradient."""
    model = head(width=tiny.feature_dim, grid=(4, 4))
    assert not set(model.modules()) & set(tiny.model.modules())
    assert not set(model.parameters()) & set(tiny.model.parameters())
    tokens = tiny.encode_image(torch.rand(2, 3, 32, 32), 3)
    boxes = model(torch.rand(2, 3, 32, 32), torch.rand(2, 5, 4, 4), tokens.features.transpose(0, 1))
    target = [torch.tensor([[0.1, 0.1, 0.6, 0.7]])] * 2
    gt_class_localization_loss(boxes, target, [torch.tensor([1])] * 2, assign="best_iou_or_center").total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in tiny.model.parameters())


@pytest.mark.parametrize("name", LOCALIZER_INPUTS)
def test_what_is_not_an_input_changes_nothing(name):
    given = dict(zip(("image", "cam", "features"), inputs(), strict=True))
    model = head(inputs=[name]).eval()
    for changed in given:
        boxes = model(*{**given, changed: given[changed].flip(0, -1) + 1}.values())
        assert torch.equal(boxes, model(*given.values())) == (changed != name), changed


def test_classes_and_the_scale_of_their_maps_are_all_alike_before_training():
    """The boxes of a class follow from its map; scale and offset of the similarities change nothing."""
    images, cam, features = inputs()
    model = head().eval()
    boxes = model(images, cam, features)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(images, cam[:, order], features), boxes[:, order])
    torch.testing.assert_close(model(images, 0.02 * cam + 0.3, features), boxes, atol=1e-4, rtol=0)
    assert model(images, torch.zeros_like(cam), features).isfinite().all()


@pytest.mark.parametrize("given", [LOCALIZER_INPUTS, ("cam",), ("image",)])
def test_a_part_of_the_channels_is_that_part_of_all(given):
    model = head(inputs=given).eval()
    image, label = torch.tensor([0, 1, 1, 0]), torch.tensor([4, 0, 2, 1])
    expected = model(*inputs())[image, label]
    torch.testing.assert_close(model.channels(*inputs(), image, label), expected, rtol=1e-5, atol=1e-6)
    assert model.channels(*inputs(), image[:0], label[:0]).shape == (0, 7, 7, 4)


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (5, 9), (1, 1), (16, 3)])
def test_maps_at_a_coarser_grid_are_pooled_as_torch_does(grid):
    maps = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_grid(maps, grid), torch.nn.functional.adaptive_avg_pool2d(maps, grid))
    assert to_grid(maps, (16, 16)) is maps
    assert to_grid(maps, (32, 17)).shape == (2, 3, 32, 17)


def test_pooling_that_apples_devices_refuse_is_not_used(monkeypatch):
    """MPS pools only sizes that divide (pytorch#96056): 16 x 16 of the encoder to 14 x 14 does not."""

    for name in ("adaptive_avg_pool2d", "interpolate"):
        monkeypatch.setattr(torch.nn.functional, name, None)
    assert head(grid=(3, 3))(*inputs(size=128)).shape == (2, 5, 3, 3, 4)


@pytest.mark.parametrize(("change", "message"), [
    ({"image": torch.rand(2, 1, 32, 32)}, r"images must be \[B, 3, S, S\]"),
    ({"image": torch.rand(2, 3, 4, 4)}, "at least 8"),
    ({"cam": torch.rand(2, 4, 4, 4)}, r"cam must be \[2, 5, h, w\]"),
    ({"features": torch.rand(2, 3, 15, 24)}, r"features must be \[2, 3, 16, 24\]"),
    ({"features": torch.rand(2, 2, 16, 24)}, r"features must be \[2, 3, 16, 24\]"),
])  # fmt: skip
def test_inputs_that_do_not_fit(change, message):
    given = dict(zip(("image", "cam", "features"), inputs(), strict=True)) | change
    refused(head(), ParameterError, message, *given.values())


@pytest.mark.parametrize(("name", "value"), [
    ("num_classes", 0), ("feature_dim", 2.0), ("grid", (7,)), ("grid", (0, 7)), ("inputs", ()), ("inputs", ["text"])
])  # fmt: skip
def test_sizes_that_cannot_be(name, value):
    refused(GTClassLocalizer, ParameterError, name, **{"num_classes": 5, "feature_dim": 24, name: value})


# ------------------------------------------------------------------------------------------------------- its file


def test_a_saved_head_comes_back_whole_and_belongs_to_its_clip_class_list_and_maps(tiny, tmp_path):
    """The ways in which a file can be wrong: `test_adapter.py`; both are read by `weights.load_trained`."""
    model, given = head(width=tiny.feature_dim), inputs(width=tiny.feature_dim)
    belongs = clip_and_maps(tiny, [*"abcde"], layers=3, kind="vv_mixed", templates=["a {}"])
    about = {"belongs_to": belongs, "epoch": 3}
    path = save_trained(tmp_path / "head.safetensors", "localizer", model.config, model.state_dict(), about)
    loaded, read = load_localizer(path, belongs_to=belongs)
    assert read == about
    assert not loaded.training
    assert torch.equal(loaded(*given), model.eval()(*given))
    assert "device" not in belongs  # trained on a GPU, used on a CPU
    for what, change in (
        ("weights_sha256", {"weights_sha256": "0" * 64}), ("classes, item 2", {"classes": [*"axcde"]}),
        ("kind", {"kind": "standard"}),
    ):  # fmt: skip
        refused(load_localizer, CheckpointError, what, path, belongs_to={**belongs, **change})
    refused(load_localizer, CheckpointError, "no trained localiser", tmp_path / "nothing.safetensors")
