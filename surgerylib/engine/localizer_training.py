"""What the training loop needs to know of the localiser: batches from the cache, its loss, its validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from ..datasets import check_have_boxes
from ..errors import ParameterError, checked
from ..localizer import LOCALIZER_INPUTS, GTClassLocalizer, to_grid
from ..losses import ASSIGNERS, gt_class_localization_loss, total_of
from ..weights import untrained_model
from .features import Batch, BatchReader, FeatureCache
from .localization import (
    BASELINES,
    baseline_ious,
    class_mean_boxes,
    gt_class_localization,
    localization_summary,
    peak_localization,
)
from .parallel import read_ahead
from .tasks import Count, NotNegative, Schedule, Task
from .training import Training, fit

UNTRAINED = {"oracle": "untrained_oracle", "cam_peak": "untrained_peak"}
METHODS = ("oracle", "cam_peak", *UNTRAINED.values(), *BASELINES)
_EVALUATION_BATCH = 32


@checked
class LocalizerSettings:
    """What the head is and how its boxes are judged, beside the schedule; named as notebook 03's parameters."""

    grid_size: Count | None = None  # rows and columns of cells; None takes those of the CLIP's patches
    # what the head looks at
    inputs: Annotated[tuple[Literal[LOCALIZER_INPUTS], ...], Field(min_length=1)] = LOCALIZER_INPUTS
    training_batch_size: Count = 16  # images a step
    l1_weight: NotNegative = 1.0  # this and the next four: of the loss
    giou_weight: NotNegative = 2.0
    positive_radius: NotNegative = 1.5
    positive_iou: Annotated[float, Field(ge=0, lt=1)] = 0.3
    assign: Literal[ASSIGNERS] = "best_iou_or_center"
    augment: bool = True  # flips and quarter turns
    seen_classes: tuple[str, ...] | None = None  # only boxes of these are trained on; None takes all classes
    seed: Annotated[int, Field(ge=0)] = 0  # of weights, order and symmetries

    def __post_init__(self) -> None:
        """Raise a `ParameterError` for weights of which nothing would be learned."""
        if self.l1_weight == self.giou_weight == 0:
            raise ParameterError("l1_weight and giou_weight are both 0; nothing would be learned")


class LocalizerTask(Task):
    """The localiser, on the features of training images.

    Attributes:
        model: on the CLIP's device.
        seen: places of the classes that are trained on.
        class_means: [C, 4] mean box of each class in the training images, those not trained on too.
        is_trained_on: bool [G], which boxes of the training images are of classes that are trained on.
    """

    name, criterion, module = "training", "val_iou", "localizer"

    def __init__(
        self,
        train: FeatureCache,
        validation: FeatureCache,
        settings: LocalizerSettings,
        *,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        """Both caches computed.

        Args:
            train, validation: features to train on, and those of other images.
            settings: of the head and its loss.
            loss: in place of `gt_class_localization_loss`: called with `pred_boxes, boxes, labels` as that is (not with
                the settings), it gives a tensor of one number with gradient, or an object with such a `total`. Only
                the classes with a box in their image have predictions; the channels of others are 0.

        Raises:
            CacheError: features of different models, classes or maps.
            ParameterError: an image in both, or a class in `seen_classes` that has no box in the training images.
            UnknownClassError: one that is not in the class list.
            TrainingError: no box to validate on.
        """
        super().__init__(train, validation, settings, lambda cache: cache.belongs_to)
        clip, classes = train.clip, train.dataset.classes
        names = classes if settings.seen_classes is None else check_have_boxes(train.dataset, settings.seen_classes)
        self.seen, self._loss = [classes.index(name) for name in names], loss
        self.reader, self.validation_reader = (BatchReader(cache, self.seen) for cache in (train, validation))
        self.check_has_boxes(validation, len(self.validation_reader.usable))
        config = {
            "num_classes": len(classes),
            "feature_dim": clip.feature_dim,
            "num_layers": train.layers,
            "grid": clip.grid if settings.grid_size is None else [settings.grid_size] * 2,
            "inputs": settings.inputs,
        }
        self.model = untrained_model(GTClassLocalizer, config, settings.seed).to(clip.device)
        self.class_means = class_mean_boxes(self.reader.boxes_xyxy, self.reader.label, len(classes))
        self.is_trained_on = np.isin(self.reader.label, self.seen)
        self.kept["ever_positive"] = torch.zeros(len(self.is_trained_on), dtype=torch.bool)
        self.places = self.reader.usable
        plain = self.plain_settings
        self.identity = self.made_of(loss, gt_class_localization_loss, plain)
        self.about = {"settings": plain, "seen_classes": list(names), "class_means": self.class_means.tolist()}

    @property
    def ever_positive(self) -> Tensor:
        """Which boxes of the training images have had a positive cell: bool [G]."""
        return self.kept["ever_positive"]

    def batch(self, places: np.ndarray, symmetries: np.ndarray) -> Batch:
        """Flipped and turned."""
        return self.reader.batch(places, symmetries)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """Figures: loss, l1, giou, positives a box, share of boxes without a positive; of an own loss, that alone."""
        chosen, pred_boxes = self.settings, predict(self.model, batch)
        if self._loss is not None:
            total = total_of(self._loss(pred_boxes, batch.boxes, batch.labels))
            none = dict.fromkeys(("l1", "giou", "positives_per_box", "share_without_positive"), (0.0, 0))
            return total, {"loss": (float(total.detach()), 1), **none}
        terms = gt_class_localization_loss(
            pred_boxes, batch.boxes, batch.labels, radius=chosen.positive_radius, iou_threshold=chosen.positive_iou,
            l1_weight=chosen.l1_weight, giou_weight=chosen.giou_weight, assign=chosen.assign,
        )  # fmt: skip
        has_positive = terms.has_positive.cpu()
        self.ever_positive[torch.from_numpy(batch.rows)[has_positive]] = True
        n_boxes, n_positives = len(has_positive), terms.num_positives
        means = {"loss": terms.total, "l1": terms.l1, "giou": terms.giou}
        return terms.total, {
            **{name: (float(value.detach()) * n_positives, n_positives) for name, value in means.items()},
            "positives_per_box": (n_positives, n_boxes),
            "share_without_positive": (n_boxes - int(has_positive.sum()), n_boxes),
        }

    def validate(self) -> dict[str, float]:
        """Mean oracle IoU, share above 0.5, and the mean IoU at the CAM's peak."""
        ious = localize(self.model, self.validation_reader)
        return {
            "val_iou": float(ious["oracle"].mean()),
            "val_share_50": float((ious["oracle"] > 0.5).mean()),
            "val_peak_iou": float(ious["cam_peak"].mean()),
        }


def train_localizer(
    train: FeatureCache,
    validation: FeatureCache,
    settings: LocalizerSettings,
    schedule: Schedule,
    trainings_dir: str | Path,
    *,
    loss: Callable[..., Any] | None = None,
    description: str = "training the localiser",
) -> tuple[LocalizerTask, Training]:
    """Train the localiser, or take up where a training of the same settings and loss on the same data stopped.

    Arguments as of `LocalizerTask` and `fit`. Kept are, besides the best and the last weights, those before training
    and half-way.
    """
    task = LocalizerTask(train, validation, settings, loss=loss)
    return task, fit(task, schedule, trainings_dir, keep_epochs=kept_epochs(schedule), description=description)


def kept_epochs(schedule: Schedule) -> tuple[int, ...]:
    """Before training, half-way, at the end."""
    return tuple(sorted({0, schedule.epochs // 2, schedule.epochs}))


def predict(model: GTClassLocalizer, batch: Batch) -> Tensor:
    """The head on a batch of a cache: [B, C, H, W, 4].

    Only the channels of classes with a box in their image are computed, a fraction of all; nobody looks at the others,
    which are 0.
    """
    device = next(model.parameters()).device
    image = torch.repeat_interleave(torch.tensor([len(labels) for labels in batch.labels], dtype=torch.long))
    pairs = torch.unique(torch.stack([image, torch.cat(batch.labels)]), dim=1).to(device)
    inputs = (part.to(device) for part in (batch.pictures, batch.cam, batch.features))
    found = model.channels(*inputs, *pairs)  # [K, H, W, 4]
    boxes = found.new_zeros(*batch.cam.shape[:2], *found.shape[1:])
    boxes[pairs[0], pairs[1]] = found
    return boxes


@torch.no_grad()
def localize(model: GTClassLocalizer, reader: BatchReader, class_means: np.ndarray | None = None) -> pd.DataFrame:
    """Every box of a cache, its class being given: how well the head's boxes and the baselines' fit it.

    Args:
        model: in eval mode.
        reader: of a computed cache.
        class_means: [C, 4] mean boxes of training images; None leaves the baselines out.

    Returns:
        Frame image_id, label (name), box_row (of the data set's boxes), row, column (of the best cell), oracle,
        cam_peak, and a column each of `BASELINES`: IoUs.
    """
    frames, dataset, places = [], reader.cache.dataset, reader.usable
    ids, names = dataset.images["image_id"].to_numpy(object), np.array(dataset.classes, dtype=object)
    parts = [places[start : start + _EVALUATION_BATCH] for start in range(0, len(places), _EVALUATION_BATCH)]
    batches = read_ahead(reader.batch, parts)
    for batch in tqdm(batches, total=len(parts), desc="the head's boxes", delay=2, leave=False):
        boxes = predict(model, batch).float().cpu()
        cam = to_grid(batch.cam, model.grid)
        oracle = gt_class_localization(boxes, batch.boxes, batch.labels)
        peak = peak_localization(boxes, cam, batch.boxes, batch.labels)
        frame = pd.DataFrame({
            "image_id": ids[batch.positions[oracle["image_index"]]],
            "label": names[oracle["label"]],
            "box_row": batch.rows,
            **oracle[["row", "column"]],
            "oracle": oracle["iou"],
            "cam_peak": peak["iou"],
        })  # fmt: skip
        if class_means is not None:
            given = np.concatenate([part.numpy() for part in batch.boxes])
            frame = pd.concat([frame, baseline_ious(given, oracle["label"].to_numpy(), class_means)], axis=1)
        frames.append(frame)
    columns = ["image_id", "label", "box_row", "row", "column", *UNTRAINED, *(() if class_means is None else BASELINES)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def with_untrained(ious: pd.DataFrame, untrained: pd.DataFrame) -> pd.DataFrame:
    """A frame of `localize` with the same boxes under the untrained head as further methods (`UNTRAINED`).

    An oracle chooses among all cells, and one lies where something is: no head need learn anything to beat a fixed box.
    """
    return ious.assign(**{name: untrained[method].to_numpy() for method, name in UNTRAINED.items()})


@torch.no_grad()
def boxes_on_image(
    model: GTClassLocalizer, reader: BatchReader, position: int, label: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """What the head says of one class on one image, in [0, 1] of it.

    Returns:
        the best cells' boxes [K, 4] for those ground truth boxes of the class that are fitted best, at most 8; the box
        at the CAM's peak [4]; and the mean IoU of each with all ground truth boxes of the class.
    """
    batch = reader.batch([position])
    own = batch.labels[0] == label
    truth = [batch.boxes[0][own]], [batch.labels[0][own]]
    pred = predict(model, batch).float().cpu()
    best, peak = gt_class_localization(pred, *truth), peak_localization(pred, to_grid(batch.cam, model.grid), *truth)
    cells = pd.concat([best.nlargest(8, "iou"), peak[:1]])
    drawn = pred.numpy()[0, label, cells["row"], cells["column"]]
    return drawn[:-1], drawn[-1], float(best["iou"].mean()), float(peak["iou"].mean())


def summarise(ious: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """`localization_summary` of a frame of `localize`."""
    methods = [name for name in METHODS if name in ious.columns]
    return localization_summary(ious[methods], ious["image_id"], seed=seed)
