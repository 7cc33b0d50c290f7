"""Tokens and text -> similarities -> class heatmaps, and `Setting`: every choice from there to boxes in one value.

Maps are always computed against the whole class list: under `surgery` similarity each class's map depends on the
others, so the list is part of a result's identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .errors import ParameterError, checked
from .words import HEATMAP_KINDS as HEATMAP_KINDS  # also found here: the kinds that `heatmaps` takes
from .words import KIND_PATHS, PATHS, check_kinds

if TYPE_CHECKING:  # nothing here needs torch itself: worker processes start without it
    from torch import Tensor

    from .adapter import HeatmapAdapter
    from .clip import ImageTokens

SIMILARITIES = ("cosine", "surgery")
SCORE_NAMES = {"mean": "mean", "max": "max", "mean_sqrt_area": "mean × √area"}
OTSU = "otsu"
Threshold = float | Sequence[float] | str  # a percentile of the raw map, several (their boxes are united), or "otsu"
_LARGEST = 3.4028234663852886e38  # maps are float32: a larger floor could not be compared with them


def heatmaps(
    tokens: ImageTokens,
    text: Tensor,
    kind: str = "vv_mixed",
    *,
    similarity: str = "cosine",
    redundant: Tensor | None = None,
    adapter: HeatmapAdapter | None = None,
) -> Tensor:
    """Similarity of every patch to every class, averaged over the layers of `tokens`.

    Args:
        tokens: of B images and L layers.
        text: [C, D] unit rows, the whole class list.
        kind: one of `HEATMAP_KINDS`.
        similarity: `cosine` or `surgery`, see `maps_of`.
        redundant: [D] or [1, D], a feature to subtract from every class (such as the text of an empty prompt), in place
            of what the classes have in common; `surgery` only: `patches·(text - redundant)ᵀ`.
        adapter: trained on the patch tokens of this kind, of as many layers, and on `cosine` maps: its tokens take the
            place of the patches, and the maps are its logits.

    Returns:
        float32 [B, C, h, w], raw: no min-max, comparable across images.

    Raises:
        ParameterError: unknown kind or similarity, sizes that do not fit, or `surgery` with one class and no
            `redundant`, which would be exactly zero everywhere; an adapter of another width or number of layers.
    """
    check_kinds([kind])
    if similarity not in SIMILARITIES:
        raise ParameterError(f"unknown similarity {similarity!r}; choose from {', '.join(SIMILARITIES)}")
    if similarity != "surgery" and redundant is not None:
        raise ParameterError('redundant is used by similarity="surgery" only: leave it out or change the similarity')
    if redundant is not None:
        if redundant.shape not in ((text.shape[-1],), (1, text.shape[-1])):
            raise ParameterError(f"redundant must be [{text.shape[-1]}], one feature, got {list(redundant.shape)}")
        text, similarity = text - redundant.reshape(1, -1), "cosine"
    if adapter is None:
        return maps_of(tokens.similarities(text), tokens.grid, kind, similarity=similarity)
    path = KIND_PATHS[kind][1]
    adapted = tokens.with_patches(path, adapter.tokens(getattr(tokens, path)[:, :, 1:]))
    return adapter.logits(maps_of(adapted.similarities(text), tokens.grid, kind, similarity=similarity))


def maps_of(similarities: Tensor, grid: tuple[int, int], kind: str, *, similarity: str = "cosine") -> Tensor:
    """Maps out of the similarities of tokens to classes: the one formula, for fresh tokens and for stored ones.

    `cosine`: that of the patches. The CLS token plays no part, so `vv_vv` and `vv_mixed` agree.
    `surgery` (Li et al. 2023, arXiv:2304.05653, section 3.3): with S = patches·textᵀ, p = softmax(2·cls·textᵀ) over
    the classes and w = p / mean(p): `w·S - mean over classes of w·S`, for each image and layer; not of one class alone.

    Args:
        similarities: [B, L, 2, C, 1+N] of `ImageTokens.similarities`, or of a `HeatmapStore`.
        grid: (h, w) with h * w = N.

    Returns:
        [B, C, h, w], the mean over layers.
    """
    cls_path, patch_path = (PATHS.index(path) for path in KIND_PATHS[kind])
    patches = similarities[:, :, patch_path, :, 1:]  # [B, L, C, N]
    if similarity == "surgery":
        check_classes_suffice([similarity], patches.shape[2])
        weights = (2 * similarities[:, :, cls_path, :, 0]).softmax(dim=-1)  # [B, L, C]
        weighted = (weights / weights.mean(dim=-1, keepdim=True))[..., None] * patches
        patches = weighted - weighted.mean(dim=2, keepdim=True)
    return patches.mean(dim=1).unflatten(-1, grid)


def upsample(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of [B, C, h, w] to [B, C, H, W], half-pixel centres (as `boxes.extract_boxes` does)."""
    from torch.nn.functional import interpolate

    return interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)


def check_classes_suffice(similarities: Iterable[str], n_classes: int) -> None:
    """Raise a `ParameterError` where `surgery` similarity would be asked of fewer than two classes."""
    if n_classes < 2 and "surgery" in similarities:
        raise ParameterError(
            f"surgery similarity needs at least two classes, got {n_classes}: pass the whole class list, or "
            "redundant= (the text embedding of an empty prompt)"
        )


def chosen_kind(kind: str | None, kinds: Sequence[str]) -> str:
    """The kind that a notebook shows in detail: the one named, which must be among those compared, or their last."""
    if not kinds or len(set(kinds)) < len(kinds):
        raise ParameterError(f"kinds is {kinds!r}; name one or more, each once")
    if kind is not None and kind not in kinds:
        raise ParameterError(f"kind is {kind!r}, which is not among kinds ({', '.join(kinds)}); add it there")
    return kinds[-1] if kind is None else kind


def _threshold(percentile: Any) -> float | tuple[float, ...] | str:
    """One form for each meaning: equal settings compare, hash and print alike."""
    several = isinstance(percentile, list | tuple) or getattr(percentile, "ndim", 0)
    values = list(percentile) if several else [percentile]
    if not values:
        raise ParameterError("percentile is an empty list: give one percentile between 0 and 100, several, or 'otsu'")
    if values == [OTSU]:
        return OTSU
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < 100:
            raise ParameterError(f"percentile must lie between 0 and 100 (both excluded), or be 'otsu', got {value!r}")
    if len(set(values)) < len(values):
        raise ParameterError(f"percentile names one value twice: {values}; name each once")
    found = tuple(sorted(map(float, values)))
    return found if len(found) > 1 else found[0]


@checked
class Setting:
    """From an image to boxes, every choice in one value. The defaults are the paper's kind and the plain five steps.

    Attributes:
        kind, similarity: of the map, see `heatmaps`.
        layers: how many of the last layers it averages.
        percentile: threshold of the raw map: a percentile between 0 and 100 (both excluded), several, whose boxes are
            united (exact duplicates once), or `otsu` (Otsu 1979, on 256 levels).
        working_size: side in pixels at which the boxes are found.
        min_side: a box is dropped when a side is at most this, in working pixels.
        max_side: a box is dropped when a side is more than this, in working pixels; None keeps all.
        box_score: `mean` or `max` of the raw map inside, or `mean_sqrt_area`: the mean times the square root of the
            box's share of the image (of two boxes with the same negative mean, the larger one then ranks lower).
        nms_iou: a box is dropped when its IoU with a better one of the same map exceeds this; None keeps all.
        floor: raw value that a pixel must reach besides the threshold, the same for all images; None sets none. A
            percentile finds something in every map, a floor leaves the maps below it without a box.
        adapter: key of the heatmap adapter that the maps went through (`engine.TrainedAdapter`); None for none.
    """

    kind: Annotated[str, BeforeValidator(lambda kind: check_kinds([kind]) or kind)] = "vv_mixed"
    similarity: Literal["cosine", "surgery"] = "cosine"
    layers: Annotated[int, Field(ge=1)] = 1
    percentile: Annotated[float | tuple[float, ...] | str, BeforeValidator(_threshold)] = 75.0
    working_size: Annotated[int, Field(ge=1)] = 224
    min_side: Annotated[int, Field(ge=0)] = 5
    max_side: int | None = None
    box_score: Literal["mean", "max", "mean_sqrt_area"] = "mean"
    nms_iou: Annotated[float, Field(gt=0, le=1)] | None = None
    floor: float | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side <= self.min_side:
            raise ParameterError(f"max_side must be above min_side ({self.min_side}), got {self.max_side}")
        if self.floor is not None:
            if not (math.isfinite(self.floor) and abs(self.floor) <= _LARGEST):
                raise ParameterError(f"floor must be a finite number (float32, as the maps are), got {self.floor!r}")
            object.__setattr__(self, "floor", self.floor + 0.0)  # of the two zeros the positive one
        if self.adapter is not None and self.similarity != "cosine":
            seen = f"an adapter is trained on cosine maps, similarity is {self.similarity!r}"
            raise ParameterError(f"{seen}; leave the adapter out or take cosine")

    @property
    def maps_key(self) -> tuple:
        """Equal for settings with the same maps."""
        paths = KIND_PATHS[self.kind]
        paths = paths[1:] if self.similarity == "cosine" else paths  # then CLS plays no part
        return (*paths, self.similarity, self.layers) + (() if self.adapter is None else (self.adapter,))

    @property
    def key(self) -> tuple:
        """Equal for settings with the same boxes."""
        of_map = ("kind", "similarity", "layers", "adapter")
        return (self.maps_key, *(value for name, value in asdict(self).items() if name not in of_map))

    @property
    def thresholds(self) -> tuple[float | str, ...]:
        """The single thresholds whose boxes are united."""
        return self.percentile if isinstance(self.percentile, tuple) else (self.percentile,)

    def parameters(self) -> dict[str, Any]:
        """The setting by the names of the notebooks' parameters; plain values."""
        values = asdict(self) | {"percentile": list(self.thresholds) if len(self.thresholds) > 1 else self.percentile}
        del values["working_size"]
        return {"last_layers" if name == "layers" else name: value for name, value in values.items()}

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **others: Any) -> Setting:
        """The setting in a notebook's parameters, of which `last_layers` is `layers`; `others` are fields that differ.

        Raises:
            ParameterError: a value that cannot be, by its parameter's name.
        """
        fields = {"last_layers" if name == "layers" else name: name for name in cls.__dataclass_fields__}
        del fields["adapter"]  # the parameter names a file or folder
        given = {fields[name]: value for name, value in parameters.items() if name in fields}
        if given.get("kind", "") is None:  # of a notebook that compares several: the caller chooses
            del given["kind"]
        try:
            return cls(**(given | others))
        except ParameterError as error:
            text = str(error)
            raise ParameterError(f"last_{text}" if text.startswith("layers ") else text) from None

    def describe_maps(self) -> str:
        """`surgery similarity, last layer`: what two kinds' maps have in common."""
        return f"{self.similarity} similarity, {self._describe_layers()}"

    def describe(self) -> str:
        """`vv_mixed, cosine, percentile 75`, and whatever differs from the plain five steps on the last layer."""
        parts = (
            self.kind,
            self.similarity,
            (self.layers > 1 or self.adapter is not None) and self._describe_layers(),
            "Otsu's threshold" if self.percentile == OTSU else "percentile " + threshold_text(self.percentile),
            self.floor is not None and f"floor {self.floor:.3g}",
            self.nms_iou is not None and f"NMS at {self.nms_iou:g}",
            self.min_side != Setting.min_side and f"sides > {self.min_side}",
            self.max_side is not None and f"sides ≤ {self.max_side}",
            self.box_score != "mean" and f"score {SCORE_NAMES[self.box_score]}",
        )
        return ", ".join(filter(None, parts))

    def _describe_layers(self) -> str:
        layers = "last layer" if self.layers == 1 else f"last {self.layers} layers"
        if self.adapter is not None:
            return f"adapter on the {layers}"
        return layers if self.layers == 1 else f"mean of the {layers}"


def threshold_text(percentile: Threshold) -> str:
    """`75`, `60 + 75 + 90` or `otsu`."""
    if isinstance(percentile, list | tuple):
        return " + ".join(f"{value:g}" for value in percentile)
    return percentile if isinstance(percentile, str) else f"{percentile:g}"


def joint_names(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Of names with the same maps one, under all of them: `standard = vv_qk`."""
    names: dict[tuple, list[str]] = {}
    for name, setting in settings.items():
        names.setdefault(setting.maps_key, []).append(name)
    return {" = ".join(alike): settings[alike[0]] for alike in names.values()}
