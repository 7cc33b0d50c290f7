"""What the training loop needs to know of the heatmap adapter: batches of tokens, its loss, its validation.

The adapter sees one patch at a time, and its losses don't ask where in the image a patch lies: flipping or turning an
image would change nothing, so there is no augmentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapter import HeatmapAdapter, clip_and_tokens, save_adapter, untrained_adapter
from ..checks import as_floats, as_whole_numbers
from ..datasets import check_disjoint
from ..errors import CacheError, ParameterError, TrainingError
from ..heatmaps import KIND_PATHS, check_kinds
from ..identities import differences, short_hash
from ..losses import heatmap_loss
from ..versions import source_sha256
from ..words import PROMPT_TEMPLATES, canonical_class, prompt_names
from .caches import CoverageTargets, TokenCache
from .feature_batches import read_ahead
from .training import Schedule, Training, fit

# what decides the weights; the cache's identity answers for the rest
_CODE = ("adapter", "engine.adapter_training", "boxes", "words", "losses", "engine.token_cache", "engine.training")
LOSSES = ("classification", "localization", "sparsity")


@dataclass(frozen=True)
class AdapterSettings:
    """What the adapter is and how its maps are judged, beside the schedule.

    Attributes:
        rank: of the adapter's residual.
        batch_size: images a step.
        classification_weight, localization_weight, sparsity_weight: of the losses; 0 switches one off.
        anchor_weight: of the mean squared length of the residual, which holds the tokens near what CLIP said: a class
            that is not trained on is told by nothing else.
        positive_weight: what a covered patch counts against an empty one in the cross-entropy.
        focal_gamma: above 0 the cross-entropy is the focal loss.
        seen_classes: what is trained on, as far as the training images hold boxes of it: a class without a box would
            learn to be nowhere. None takes all classes. The order does not matter.
        seed: of weights and order.
    """

    rank: int = 32
    batch_size: int = 16
    classification_weight: float = 1.0
    localization_weight: float = 1.0
    sparsity_weight: float = 1.0
    anchor_weight: float = 3.0
    positive_weight: float = 10.0
    focal_gamma: float = 0.0
    seen_classes: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise a `ParameterError` for a value that cannot be."""
        as_whole_numbers(self, {"rank": 1, "batch_size": 1, "seed": 0})
        as_floats(self, [f"{name}_weight" for name in LOSSES])
        as_floats(self, ("positive_weight",), above=True)
        as_floats(self, ("focal_gamma", "anchor_weight"))
        if not any(self.weights.values()):
            raise ParameterError("the weights of all three losses are 0; nothing would be learned")
        if self.seen_classes is not None:
            names = tuple(sorted(map(canonical_class, self.seen_classes)))  # one form for each meaning
            if not names or len(set(names)) < len(names):
                raise ParameterError(f"seen_classes must name one class or more, each once, got {self.seen_classes!r}")
            object.__setattr__(self, "seen_classes", names)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss, as arguments of `losses.heatmap_loss`."""
        return {f"{name}_weight": getattr(self, f"{name}_weight") for name in LOSSES}


@dataclass(frozen=True)
class TokenBatch:
    """Some images of a token cache.

    Attributes:
        positions: [B] places in the data set.
        tokens: float32 [L, B, N, D].
        coverage: float32 [B, C, h, w], of the classes that are trained on.
    """

    positions: np.ndarray
    tokens: Tensor
    coverage: Tensor


class AdapterTask:
    """A `training.Task`: an adapter on the tokens of training images, validated on those of others.

    Attributes:
        model: on the CLIP's device.
        kind: heatmap kind whose patch tokens are adapted.
        identity, steps, criterion: as in `training.Task`.
        seen: the classes that are trained on: of `seen_classes` those with a box, by name.
    """

    criterion = "val_patch_ap"

    def __init__(
        self,
        train: TokenCache,
        validation: TokenCache,
        settings: AdapterSettings,
        *,
        kind: str = "vv_mixed",
        templates: Sequence[str] = PROMPT_TEMPLATES,
    ) -> None:
        """Both caches computed.

        Raises:
            CacheError: tokens of different models or numbers of layers.
            ParameterError: an image in both, or an unknown kind.
            UnknownClassError: one that is not in the class list.
            TrainingError: no box to train or to validate on.
        """
        check_kinds([kind])
        check_disjoint(train.dataset, validation.dataset)
        here, there = (clip_and_tokens(cache.clip, kind, cache.layers) for cache in (train, validation))
        if different := differences(there, here):
            raise CacheError(f"the tokens to train and to validate on were made of different things ({different})")
        self.settings, self.train, self.validation, self.kind = settings, train, validation, kind
        self._path = KIND_PATHS[kind][1]
        clip, classes = train.clip, train.dataset.classes
        names = {canonical_class(name, classes) for name in settings.seen_classes or classes}
        # in one order, whatever that of the class list: sums in another order would give other weights
        self.seen = sorted(names & set(train.dataset.boxes["label"]), key=str.lower)
        self._coverage = CoverageTargets(train.dataset, self.seen, clip.grid)
        self._validation_coverage = CoverageTargets(validation.dataset, self.seen, clip.grid)
        for cache, coverage in ((train, self._coverage), (validation, self._validation_coverage)):
            if not len(coverage):
                raise TrainingError(
                    f"the split {cache.dataset.split} has no box of the classes that are trained on; choose another"
                )
        self._text = clip.encode_text(prompt_names(self.seen), templates)
        self._config = {"embed_dim": clip.embed_dim, "num_layers": train.layers, "rank": settings.rank}
        self.model = untrained_adapter(self._config, settings.seed).to(clip.device)
        self.steps = -(-len(train.dataset.images) // settings.batch_size)
        self.identity: dict[str, Any] = {
            "trained": "HeatmapAdapter",
            "settings": json.loads(json.dumps(asdict(settings))),
            "patches": self._path,
            "classes": self.seen,
            "templates": list(templates),
            "train_cache": train.key,
            "validation_cache": validation.key,
            "annotations": [train.dataset.fingerprint(), validation.dataset.fingerprint()],
            "code_sha256": source_sha256(_CODE),
        }

    def batches(self, epoch: int, first: int) -> Iterator[TokenBatch]:
        """As in `training.Task`; images without a box are gone through too: they say what is not there."""
        size = self.settings.batch_size
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.train.dataset.images))
        parts = [order[start : start + size] for start in range(first * size, len(order), size)]
        yield from read_ahead(self._batch, parts)

    def loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """As in `training.Task`: loss, its terms, how far the tokens moved, and the scale of the logits."""
        chosen, model = self.settings, self.model
        patches, coverage = (part.to(self._text.device) for part in (batch.tokens, batch.coverage))
        # the drift is of unit tokens: 0.01 is a tenth of their length
        maps, drift = model.maps_and_drift(patches, self._text, self.train.clip.grid)
        terms = heatmap_loss(
            maps.float(), coverage,
            positive_weight=chosen.positive_weight, focal_gamma=chosen.focal_gamma, **chosen.weights,
        )  # fmt: skip
        total = terms.total + chosen.anchor_weight * drift
        figures = {"loss": total, **{name: terms[name] for name in (*LOSSES, "bce", "dice")}, "drift": drift}
        figures["scale"] = model.scale
        return total, {name: (float(value.detach()), 1) for name, value in figures.items()}

    def parts(self, batch: TokenBatch, most: int) -> list[TokenBatch]:
        """As in `training.Task`: the loss has none, its terms are means over different numbers of maps."""
        return [batch]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """As in `training.Task`: mean over the classes of the patches' average precision."""
        logits = torch.cat(list(logits_in_order(self.model, self.validation, self.kind, self._text)))
        coverage = self._validation_coverage.read(range(len(logits)))
        return {"val_patch_ap": float(np.nanmean(patch_average_precision(logits, coverage)))}

    def describe(self, batch: TokenBatch) -> str:
        """As in `training.Task`: the images."""
        ids = self.train.dataset.images["image_id"].iloc[batch.positions].tolist()
        more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
        return f"images {', '.join(ids[:4])}{more}"

    def state(self) -> dict[str, Tensor]:
        """As in `training.Task`: nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """As in `training.Task`."""

    def save(self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """As in `training.Task`."""
        what = {
            "belongs_to": clip_and_tokens(self.train.clip, self.kind, self.train.layers),
            "kinds": [kind for kind, (_, patches) in KIND_PATHS.items() if patches == self._path],
            "settings": self.identity["settings"],
            "seen_classes": self.seen,
            "templates": self.identity["templates"],
            "trained_on": self.train.dataset.origin(),
            "chosen_on": self.validation.dataset.origin(),
            **about,
        }
        save_adapter(path, self._config, weights, what)

    def _batch(self, positions: np.ndarray) -> TokenBatch:
        return TokenBatch(positions, self.train.tokens(positions, self._path), self._coverage.read(positions))


def train_adapter(
    train: TokenCache,
    validation: TokenCache,
    settings: AdapterSettings,
    schedule: Schedule,
    trainings_dir: str | Path,
    *,
    kind: str = "vv_mixed",
    **options: Any,
) -> tuple[AdapterTask, Training]:
    """Train an adapter, or take up where a training of the same settings on the same data stopped.

    Args:
        train: computed.
        validation: computed.
        settings: of the adapter and its losses.
        schedule: how long and how fast.
        trainings_dir: folder of trainings, a subfolder each.
        kind: heatmap kind whose patch tokens are adapted.
        **options: `checkpoint_seconds`, `description` of `fit`.
    """
    task = AdapterTask(train, validation, settings, kind=kind)
    return task, fit(task, schedule, training_folder(task, schedule, trainings_dir), **options)


def training_folder(task: AdapterTask, schedule: Schedule, trainings_dir: str | Path) -> Path:
    """The folder of a training: named after all that it depends on, so that no two share one."""
    return Path(trainings_dir) / f"adapter-training-{short_hash(task.identity, asdict(schedule))}"


@torch.no_grad()
def logits_in_order(model: HeatmapAdapter, cache: TokenCache, kind: str, text: Tensor) -> Iterator[Tensor]:
    """The adapter's maps of all images of a cache in order, some at a time: float32 [B, C, h, w] on the CPU."""
    for tokens in cache.in_order(KIND_PATHS[kind][1]):
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
