"""What the training loop needs to know of the heatmap adapter: batches of tokens, its loss, its validation.

The adapter sees one patch at a time, and its losses don't ask where in the image a patch lies: flipping or turning an
image would change nothing, so there is no augmentation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from ..adapter import HeatmapAdapter, clip_and_tokens
from ..boxes import patch_coverage
from ..clip import SurgeryCLIP
from ..datasets import Dataset
from ..errors import ParameterError, UnknownClassError, checked
from ..losses import heatmap_loss, total_of
from ..weights import untrained_model
from ..words import KIND_PATHS, PATHS, PROMPT_TEMPLATES, canonical_class, kinds_on, prompt_names
from .measures import truth_codes, unit_boxes
from .recipes import patch_tokens
from .store import Store
from .tasks import Count, NotNegative, Positive, Schedule, Task
from .training import Training, fit

LOSSES = ("classification", "localization", "sparsity")
_TERMS = (*LOSSES, "bce", "dice")
_READ_IMAGES = 64  # images whose tokens are in memory at a time where all are gone through


@checked
class AdapterSettings:
    """What the adapter is and how its maps are judged, beside the schedule; named as notebook 03's parameters."""

    rank: Count = 32  # of the adapter's residual
    training_batch_size: Count = 16  # images a step
    classification_weight: NotNegative = 1.0  # this and the next two: of the losses; 0 switches one off
    localization_weight: NotNegative = 1.0
    sparsity_weight: NotNegative = 1.0
    # of the mean squared length of the residual, which holds the tokens near what CLIP said: a class that is not
    # trained on is told by nothing else
    anchor_weight: NotNegative = 3.0
    positive_weight: Positive = 10.0  # what a covered patch counts against an empty one in the cross-entropy
    focal_gamma: NotNegative = 0.0  # above 0 the cross-entropy is the focal loss
    # not trained on, in any spelling and order; nor are classes without a box in the training images, which would learn
    # to be nowhere
    unseen_classes: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0  # of weights and order

    def __post_init__(self) -> None:
        """Raise a `ParameterError` for weights of which nothing would be learned."""
        if not any(self.weights.values()):
            raise ParameterError("the weights of all three losses are 0; nothing would be learned")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss, as arguments of `losses.heatmap_loss`."""
        return {f"{name}_weight": getattr(self, f"{name}_weight") for name in LOSSES}

    def seen(self, classes: Sequence[str]) -> list[str]:
        """The classes of a list that are trained on; an error where none is left, or an unseen one is not in it."""
        try:
            unseen = {canonical_class(name, classes) for name in self.unseen_classes}
        except UnknownClassError as error:
            raise UnknownClassError(f"unseen_classes: {error}") from None
        if unseen.issuperset(classes):
            raise ParameterError("unseen_classes names all classes; leave one or more to train on")
        return [name for name in classes if name not in unseen]


class TokenCache(Store):
    """What a heatmap adapter is trained on, see `recipes.patch_tokens`. Attributes as in `Store`."""

    def __init__(self, clip: SurgeryCLIP, dataset: Dataset, cache_dir: str | Path, *, layers: int = 3) -> None:
        """Find or prepare the cache; nothing is computed yet. Arguments and errors as of `FeatureCache`."""
        super().__init__(clip, dataset, cache_dir, patch_tokens(clip, layers))

    def tokens(self, positions: Sequence[int] | np.ndarray, path: str) -> Tensor:
        """Tokens of some images by their places in the data set, of one path (`qk` or `vv`): float32 [L, B, N, D]."""
        tokens = np.empty((self.layers, len(positions), *self.record.shape[2:]), dtype=np.float32)
        for place, record in enumerate(self.read(positions)):
            tokens[:, place] = record[PATHS.index(path)]
        return torch.from_numpy(tokens)


class CoverageTargets:
    """How much of each patch the boxes of each class cover, on every image of a data set."""

    def __init__(self, dataset: Dataset, classes: Sequence[str], grid: tuple[int, int]) -> None:
        """Args:
        dataset: with the ground truth.
        classes: C names, in the order of the maps; boxes of others are not looked at.
        grid: (rows h, columns w) of patches.
        """
        self._shape = (len(classes), *grid)
        image, label = truth_codes(dataset)
        boxes = unit_boxes(dataset)
        groups = pd.DataFrame({"image": image, "label": np.array(dataset.classes, dtype=object)[label]})
        # by image: (place of the class, [h, w]); most pairs of image and class hold no box
        self._by_image: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for (of_image, name), rows in groups.groupby(["image", "label"]).indices.items():
            if name in classes:
                covered = patch_coverage(boxes[rows], grid).astype(np.float32)
                self._by_image[of_image].append((classes.index(name), covered))

    def read(self, positions: Sequence[int] | np.ndarray) -> Tensor:
        """Of some images by their places in the data set: float32 [B, C, h, w] in [0, 1]."""
        coverage = torch.zeros(len(positions), *self._shape)
        for place, position in enumerate(positions):
            for label, covered in self._by_image.get(int(position), ()):
                coverage[place, label] = torch.from_numpy(covered)
        return coverage

    def __len__(self) -> int:
        """Pairs of an image and a class with boxes."""
        return sum(map(len, self._by_image.values()))


class TokenBatch(NamedTuple):
    """Some images of a token cache."""

    positions: np.ndarray  # [B] places in the data set
    tokens: Tensor  # float32 [L, B, N, D]
    coverage: Tensor  # float32 [B, C, h, w], of the classes that are trained on


class AdapterTask(Task):
    """An adapter, on the tokens of training images.

    Attributes:
        model: on the CLIP's device.
        kind: heatmap kind whose patch tokens are adapted.
        seen: the classes that are trained on, by name.
    """

    name, criterion, module = "adapter-training", "val_patch_ap", "adapter"

    def __init__(
        self,
        train: TokenCache,
        validation: TokenCache,
        settings: AdapterSettings,
        *,
        kind: str = "vv_mixed",
        loss: Callable[..., Any] | None = None,
    ) -> None:
        """Both caches computed.

        Args:
            train, validation: tokens to train on, and those of other images.
            settings: of the adapter and its losses.
            kind: heatmap kind whose patch tokens are adapted.
            loss: in place of `heatmap_loss`: called with `logits, coverage`, both [B, C, h, w], it gives a tensor of
                one number with gradient, or an object with such a `total`. The anchor is added to it.

        Raises:
            CacheError: tokens of different models or numbers of layers.
            ParameterError: an image in both, or an unknown kind.
            UnknownClassError: one that is not in the class list.
            TrainingError: no box to train or to validate on.
        """
        super().__init__(train, validation, settings, lambda cache: clip_and_tokens(cache.clip, kind, cache.layers))
        self.kind, self._path, self._loss = kind, KIND_PATHS[kind][1], loss
        clip, names = train.clip, set(settings.seen(train.dataset.classes))
        # in one order, whatever that of the class list: sums in another order would give other weights
        self.seen = sorted(names & set(train.dataset.boxes["label"]), key=str.lower)
        self._coverage = CoverageTargets(train.dataset, self.seen, clip.grid)
        self._validation_coverage = CoverageTargets(validation.dataset, self.seen, clip.grid)
        for cache, coverage in ((train, self._coverage), (validation, self._validation_coverage)):
            self.check_has_boxes(cache, len(coverage))
        self._text = clip.encode_text(prompt_names(self.seen), PROMPT_TEMPLATES)
        config = {"embed_dim": clip.embed_dim, "num_layers": train.layers, "rank": settings.rank}
        self.model = untrained_model(HeatmapAdapter, config, settings.seed).to(clip.device)
        self.places = np.arange(len(train.dataset.images))  # those without a box too: they say what is not there
        # which classes are left out, and by which names, decides no weight beside those that are not
        plain = self.plain_settings
        of_weights = {name: value for name, value in plain.items() if name != "unseen_classes"}
        asked = {"classes": self.seen, "templates": list(PROMPT_TEMPLATES)}
        self.identity = self.made_of(loss, heatmap_loss, of_weights, patches=self._path, **asked)
        of_text = {"seen_classes": self.seen, "templates": asked["templates"]}
        self.about = {"kinds": list(kinds_on(self._path)), "settings": plain, **of_text}

    def batch(self, places: np.ndarray, symmetries: np.ndarray) -> TokenBatch:
        """As they are: to turn an image would change nothing."""
        return TokenBatch(places, self.train.tokens(places, self._path), self._coverage.read(places))

    def loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """Figures: loss, its terms, how far the tokens moved, and the scale of the logits."""
        chosen, model = self.settings, self.model
        patches, coverage = (part.to(self._text.device) for part in (batch.tokens, batch.coverage))
        # the drift is of unit tokens: 0.01 is a tenth of their length
        maps, drift = model.maps_and_drift(patches, self._text, self.train.clip.grid)
        if self._loss is None:
            terms = heatmap_loss(
                maps.float(), coverage,
                positive_weight=chosen.positive_weight, focal_gamma=chosen.focal_gamma, **chosen.weights,
            )  # fmt: skip
            own, parts = terms.total, {name: terms[name] for name in _TERMS}
        else:
            own, parts = total_of(self._loss(maps.float(), coverage)), dict.fromkeys(_TERMS)
        total = own + chosen.anchor_weight * drift
        figures = {"loss": total, **parts, "drift": drift, "scale": model.scale}
        return total, {
            name: (0.0, 0) if value is None else (float(value.detach()), 1) for name, value in figures.items()
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean over the classes of the patches' average precision."""
        logits = torch.cat(list(logits_in_order(self.model, self.validation, self.kind, self._text)))
        coverage = self._validation_coverage.read(range(len(logits)))
        return {"val_patch_ap": float(np.nanmean(patch_average_precision(logits, coverage)))}


def train_adapter(
    train: TokenCache,
    validation: TokenCache,
    settings: AdapterSettings,
    schedule: Schedule,
    trainings_dir: str | Path,
    *,
    kind: str = "vv_mixed",
    loss: Callable[..., Any] | None = None,
    description: str | None = None,
) -> tuple[AdapterTask, Training]:
    """Train an adapter, or take up where a training of the same settings and loss on the same data stopped.

    Arguments as of `AdapterTask` and `fit`.
    """
    task = AdapterTask(train, validation, settings, kind=kind, loss=loss)
    return task, fit(task, schedule, trainings_dir, description=description or f"training the adapter of {kind}")


@torch.no_grad()
def logits_in_order(model: HeatmapAdapter, cache: TokenCache, kind: str, text: Tensor) -> Iterator[Tensor]:
    """The adapter's maps of all images of a cache in order, some at a time: float32 [B, C, h, w] on the CPU."""
    n_images = len(cache.dataset.images)
    for first in range(0, n_images, _READ_IMAGES):
        tokens = cache.tokens(range(first, min(first + _READ_IMAGES, n_images)), KIND_PATHS[kind][1])
        yield model.maps_and_drift(tokens.to(text.device), text, cache.clip.grid)[0].float().cpu()


def patch_average_precision(logits: Tensor, coverage: Tensor) -> np.ndarray:
    """Average precision of all patches of all images, for each class: are the patches of its boxes ranked first?

    A patch counts as a positive by the share that is covered, so this is the pixel average precision (PxAP, Choe et al.
    2020, arXiv:2007.04178) of the map at the patch grid. Images are ranked together: a map that is high where nothing
    is costs as much as one that is low on an object.

    Args:
        logits: [n, C, h, w], of any scale.
        coverage: [n, C, h, w] in [0, 1].

    Returns:
        float64 [C]; NaN for a class without boxes. Of equal logits the first image and patch comes first.
    """
    found = np.full(logits.shape[1], np.nan)
    for c in range(len(found)):
        order = np.argsort(-logits[:, c].flatten().numpy(), kind="stable")
        covered = coverage[:, c].flatten().numpy()[order].astype(np.float64)
        total = covered.sum()
        if total > 0:
            precision = np.cumsum(covered) / np.arange(1, len(covered) + 1)
            found[c] = (covered * precision).sum() / total
    return found
