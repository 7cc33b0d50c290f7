"""The trainable head: told the class, where is the box? Frozen CLIP features and the raw image in, boxes out.

CLIP is no part of this module: it is given what CLIP saw as tensors, so that nothing frozen can be trained.
Images are RGB [B, 3, S, S] in 0..1 (or uint8), boxes xyxy in [0, 1] of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import SurgeryCLIP
from .errors import ParameterError, whole_number
from .weights import load_trained

LOCALIZER_INPUTS = ("cam", "features", "image")
WIDTH = 128  # channels of the image encoder and of the shared map
CLASS_WIDTH = 64  # channels of a class's own map


class GTClassLocalizer(nn.Module):
    """Four numbers for each class and cell, from CLIP's maps, its layers' features and the raw image.

    What the image shows is computed once for all classes; what a class adds is its own CAM and an offset of its own
    that starts at zero. The last convolutions are the same for all classes, so that a class without a single box in
    training still gets boxes, from its CAM.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        num_layers: int = 3,
        grid: tuple[int, int] = (7, 7),
        *,
        inputs: Sequence[str] = LOCALIZER_INPUTS,
    ) -> None:
        """Random weights, drawn from torch's generator.

        Args:
            num_classes: C, length of the class list.
            feature_dim: W of the layers' features (`SurgeryCLIP.feature_dim`).
            num_layers: L, number of layers whose features are given.
            grid: (rows H, columns W) of cells.
            inputs: which of `LOCALIZER_INPUTS` are looked at; the others are ignored.

        Raises:
            ParameterError: a size below 1, an unknown input, or none.
        """
        super().__init__()
        self.num_classes = whole_number("num_classes", num_classes)
        self.feature_dim = whole_number("feature_dim", feature_dim)
        self.num_layers = whole_number("num_layers", num_layers)
        if len(grid) != 2:
            raise ParameterError(f"grid must be (rows, columns), got {grid!r}")
        if not inputs or not set(inputs) <= set(LOCALIZER_INPUTS):
            raise ParameterError(f"inputs must be some of {', '.join(LOCALIZER_INPUTS)}, got {list(inputs)!r}")
        self.grid = (whole_number("grid", grid[0]), whole_number("grid", grid[1]))
        self.inputs = tuple(name for name in LOCALIZER_INPUTS if name in inputs)
        shared = WIDTH * len({"image", "features"} & set(inputs))  # channels that do not depend on the class
        if "image" in self.inputs:
            self.encoder = ImageEncoder()
        if "features" in self.inputs:
            self.norm = nn.LayerNorm(feature_dim, elementwise_affine=False)
            self.project = nn.Linear(num_layers * feature_dim, WIDTH)
            self.project_norm = nn.GroupNorm(8, WIDTH)  # on a par with the encoder's channels
        if shared:
            self.trunk = nn.Sequential(
                _conv_norm(shared, WIDTH), nn.GELU(), nn.Conv2d(WIDTH, CLASS_WIDTH, 3, padding=1)
            )
        if "cam" in self.inputs:
            half = CLASS_WIDTH // 2
            self.cam = nn.Sequential(
                nn.Conv2d(1, half, 5, padding=2), nn.GELU(), nn.Conv2d(half, CLASS_WIDTH, 3, padding=1)
            )
        self.class_offset = nn.Parameter(torch.zeros(num_classes, CLASS_WIDTH))
        self.blocks = nn.ModuleList(_ClassBlock(CLASS_WIDTH) for _ in range(2))
        self.boxes = nn.Conv2d(CLASS_WIDTH, 4, 1)
        with torch.no_grad():
            if shared:
                self.trunk[-1].weight.mul_(0.2)  # what all classes share must not drown a class's own map at the start
            self.boxes.weight.mul_(0.1)
            # before training every box is a quarter of the image wide and high
            self.boxes.bias.copy_(torch.tensor([0.0, 0.0, math.log(0.25 / 0.75), math.log(0.25 / 0.75)]))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make another of its kind: plain values."""
        sizes = {name: getattr(self, name) for name in ("num_classes", "feature_dim", "num_layers")}
        return {**sizes, "grid": list(self.grid), "inputs": list(self.inputs)}

    def forward(self, images: Tensor, cam: Tensor, features: Tensor) -> Tensor:
        """Boxes of every class in every cell.

        Args:
            images: [B, 3, S, S] RGB in 0..1, or uint8; any S of at least 8.
            cam: [B, C, h, w] raw class maps.
            features: [B, L, N, W] the layers' patch tokens, N = h * w.

        Returns:
            pred_boxes [B, C, H, W, 4], xyxy in [0, 1], xmin <= xmax and ymin <= ymax.

        Raises:
            ParameterError: a shape that does not fit.
        """
        batch, classes = len(images), self.num_classes
        image = torch.arange(batch, device=cam.device).repeat_interleave(classes)
        label = torch.arange(classes, device=cam.device).repeat(batch)
        return self.channels(images, cam, features, image, label).unflatten(0, (batch, classes))

    def channels(self, images: Tensor, cam: Tensor, features: Tensor, image: Tensor, label: Tensor) -> Tensor:
        """`forward(...)[image, label]`, [K, H, W, 4]: of some pairs alone, by their places [K] in B and C."""
        self._check(images, cam, features)
        parts = []
        if "image" in self.inputs:
            parts.append(self.encoder(images if images.is_floating_point() else images.float() / 255, self.grid))
        if "features" in self.inputs:
            rows = self.norm(features.to(self.project.weight.dtype)).transpose(1, 2).flatten(2)  # [B, N, L*W]
            projected = self.project(rows).transpose(1, 2).unflatten(2, cam.shape[-2:])  # [B, WIDTH, h, w]
            parts.append(F.gelu(self.project_norm(to_grid(projected, self.grid))))
        # index_select, not [...]: of a row that is taken twice, the gradient of indexing adds up as the threads come
        hidden = self.class_offset.index_select(0, label)[:, :, None, None]  # [K, channels, 1, 1]
        if parts:
            hidden = hidden + self.trunk(torch.cat(parts, dim=1)).index_select(0, image)
        if "cam" in self.inputs:
            hidden = hidden + to_grid(self.cam(_standardised(cam[image, label])[:, None]), self.grid)
        for block in self.blocks:
            hidden = block(hidden)
        return decode(self.boxes(hidden).permute(0, 2, 3, 1).float())  # [K, H, W, 4]

    def _check(self, images: Tensor, cam: Tensor, features: Tensor) -> None:
        batch = len(images)
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 8:
            raise ParameterError(f"images must be [B, 3, S, S] with S of at least 8, got {list(images.shape)}")
        if cam.ndim != 4 or cam.shape[:2] != (batch, self.num_classes):
            raise ParameterError(f"cam must be [{batch}, {self.num_classes}, h, w], got {list(cam.shape)}")
        expected = (batch, self.num_layers, cam.shape[2] * cam.shape[3], self.feature_dim)
        if tuple(features.shape) != expected:
            what = f"{list(expected)} for a cam of {cam.shape[2]} x {cam.shape[3]}"
            raise ParameterError(f"features must be {what}, got {list(features.shape)}")


class ImageEncoder(nn.Module):
    """The raw image at the grid: a stem of stride 4 and two convolutions, a hundredth of a ViT-B/32's work."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.GroupNorm(8, 32), nn.GELU(),
            _conv_norm(32, 64, stride=2), nn.GELU(),
            _conv_norm(64, WIDTH), nn.GELU(),
        )  # fmt: skip

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, 3, S, S] in 0..1 -> [B, WIDTH, H, W]."""
        return to_grid(self.layers(images * 2 - 1), grid)


class _ClassBlock(nn.Module):
    """A residual block at the grid, the same for all classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(self.norm(x)))))


def load_localizer(
    path: str | Path, *, belongs_to: Mapping[str, Any] | None = None
) -> tuple[GTClassLocalizer, dict[str, Any]]:
    """A trained head out of `weights.save_trained`'s file, in eval mode on the CPU, and what was written about it.

    `belongs_to` is the CLIP, class list and maps that it will be used with (`clip_and_maps`); None compares nothing.

    Raises:
        CheckpointError: no such file, a damaged one, or one that belongs to another CLIP, class list or kind of map.
    """
    return load_trained(
        path, "localizer", GTClassLocalizer, belongs_to=belongs_to, name="localiser",
        command="python -m surgerylib train",
    )  # fmt: skip


def clip_and_maps(clip: SurgeryCLIP, classes: Sequence[str], **maps: Any) -> dict[str, Any]:
    """What a trained head belongs to: the CLIP, but not the device that it runs on, the class list, and the maps.

    The maps by plain values: layers, kind, similarity, templates and picture_size of a `FeatureCache`.
    """
    own = {name: value for name, value in clip.identity.items() if name != "device"}
    return {**own, "classes": list(classes), **maps}


def to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [B, C, h, w] brought to [B, C, H, W]: means over areas where the grid is coarser, bilinear where finer."""
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    if maps.shape[-2] >= grid[0] and maps.shape[-1] >= grid[1]:
        rows, columns = (_means(n, m, maps) for n, m in zip(maps.shape[-2:], grid, strict=True))
        return rows @ maps @ columns.T
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)


def _means(n_from: int, n_to: int, like: Tensor) -> Tensor:
    """[n_to, n_from]: row k takes the mean of floor(k n / m) to ceil((k + 1) n / m), as adaptive average pooling does.

    That itself is refused by some devices where the sizes don't divide.
    """
    place, k = torch.arange(n_from, device=like.device), torch.arange(n_to, device=like.device)[:, None]
    inside = (place >= k * n_from // n_to) & (place < ((k + 1) * n_from + n_to - 1) // n_to)
    return (inside / inside.sum(dim=1, keepdim=True)).to(like.dtype)


def decode(raw: Tensor) -> Tensor:
    """Four numbers a cell [..., H, W, 4] -> boxes, xyxy, of the same shape.

    Centre = cell centre + 0.5 tanh, width and height by sigmoid, clamped to [0, 1].
    """
    height, width = raw.shape[-3:-1]
    rows = (torch.arange(height, device=raw.device, dtype=raw.dtype) + 0.5) / height
    columns = (torch.arange(width, device=raw.device, dtype=raw.dtype) + 0.5) / width
    cells = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)  # [H, W, 2]
    centre = cells + 0.5 * raw[..., :2].tanh()
    half = raw[..., 2:].sigmoid() / 2
    return torch.cat([centre - half, centre + half], dim=-1).clamp(0, 1)


def _conv_norm(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, channels_out)
    )


def _standardised(cam: Tensor) -> Tensor:
    """Each map less its mean, by its standard deviation: models differ in the range of their similarities."""
    centred = cam.float() - cam.float().mean(dim=(-2, -1), keepdim=True)
    return centred / centred.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp(min=1e-6)
