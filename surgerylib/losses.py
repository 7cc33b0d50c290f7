"""Losses of what is trained on frozen features, vectorised over images, classes, boxes, cells and patches.

The localiser is judged by its boxes, xyxy in [0, 1] of the image, the heatmap adapter by its logits of each patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import box_giou, box_iou
from .errors import ParameterError, TrainingError

ASSIGNERS = ("best_iou", "best_iou_or_center")


class _Terms:
    """`terms["giou"]` is `terms.giou`."""

    def __getitem__(self, term: str) -> Any:
        return getattr(self, term)


@dataclass(frozen=True)
class LocalizationLoss(_Terms):
    """The terms of `gt_class_localization_loss`, by attribute or by name: `terms["giou"]`."""

    total: Tensor  # `l1_weight * l1 + giou_weight * giou`, with gradient; 0 where nothing is positive
    l1: Tensor  # mean over positives of the mean absolute difference of the 4 coordinates
    giou: Tensor  # mean over positives of 1 - GIoU
    num_positives: int  # (box, cell) pairs; a cell that serves two boxes counts twice
    has_positive: Tensor  # bool [G], whether each box has any, images and their boxes in order


def gt_class_localization_loss(
    pred_boxes: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    radius: float = 1.5,
    iou_threshold: float = 0.3,
    l1_weight: float = 1.0,
    giou_weight: float = 2.0,
    assign: str = "best_iou",
) -> LocalizationLoss:
    """How far the boxes of the positive cells are from the ground truth, its class being given.

    Each ground truth box looks at the cells of its own class's channel, without gradient. Where the best IoU (not
    GIoU) exceeds `iou_threshold`, all cells within `radius` rows and columns of that best cell are its positives.
    Otherwise it has none under `best_iou`; under `best_iou_or_center` the cell that holds its centre takes the place
    of the best one. For P positives with prediction p and ground truth g:

        l1 = 1/P sum mean_4 |p - g|,   giou = 1/P sum (1 - GIoU(p, g)),   total = l1_weight l1 + giou_weight giou

    GIoU: Rezatofighi et al. 2019, arXiv:1902.09630.

    Args:
        pred_boxes: [B, C, H, W, 4] xyxy in [0, 1].
        boxes: for each of B images [G_i, 4] xyxy in [0, 1] with area; none is [0, 4].
        labels: for each image [G_i] whole numbers, the class's place in C.
        radius: in cells, along rows and columns alike: 1.5 means 3 x 3 cells.
        iou_threshold: in [0, 1).
        l1_weight, giou_weight: of the two terms.
        assign: one of `ASSIGNERS`.

    Raises:
        ParameterError: shapes that do not fit, a label without a channel, a box that cannot be one, unknown `assign`.
    """
    if assign not in ASSIGNERS:
        raise ParameterError(f"unknown assign {assign!r}; choose from {', '.join(ASSIGNERS)}")
    image, label, target = (part.to(pred_boxes.device) for part in flat_targets(pred_boxes, boxes, labels))
    n_classes, height, width = pred_boxes.shape[1:4]
    target = target.to(pred_boxes.dtype)
    # index_select, not [...]: of two boxes of a class, the gradient of indexing adds up as the threads come
    candidates = pred_boxes.flatten(0, 1).index_select(0, image * n_classes + label)  # [G, H, W, 4]
    positive = assign_cells(candidates.detach(), target, radius, iou_threshold, assign)
    of_box, row, column = positive.nonzero(as_tuple=True)
    chosen = candidates.flatten(0, 2).index_select(0, (of_box * height + row) * width + column)  # [P, 4]
    wanted = target[of_box]
    count = max(len(of_box), 1)
    # sums over nothing are 0 and still have a gradient
    l1 = (chosen - wanted).abs().mean(dim=-1).sum() / count
    giou = (1 - box_giou(chosen, wanted)).sum() / count
    total = l1_weight * l1 + giou_weight * giou
    return LocalizationLoss(total, l1, giou, len(of_box), positive.flatten(1).any(dim=1))


@torch.no_grad()
def assign_cells(candidates: Tensor, target: Tensor, radius: float, iou_threshold: float, assign: str) -> Tensor:
    """Which cells are positive for which of the boxes [G, 4]: bool [G, H, W], by the rule of the loss.

    `candidates` [G, H, W, 4] are the predictions in the channel of each box's class.
    """
    height, width = candidates.shape[1:3]
    best_iou, best = box_iou(candidates, target[:, None, None]).flatten(1).max(dim=1)
    found = best_iou > iou_threshold
    row, column = best // width, best % width
    if assign == "best_iou_or_center":
        middle = (target[:, :2] + target[:, 2:]) / 2
        at = (middle * middle.new_tensor([width, height])).long()
        row = torch.where(found, row, at[:, 1].clamp(0, height - 1))
        column = torch.where(found, column, at[:, 0].clamp(0, width - 1))
        found = torch.ones_like(found)
    near_row = (torch.arange(height, device=row.device) - row[:, None]).abs() <= radius  # [G, H]
    near_column = (torch.arange(width, device=row.device) - column[:, None]).abs() <= radius  # [G, W]
    return near_row[:, :, None] & near_column[:, None, :] & found[:, None, None]


def flat_targets(
    pred_boxes: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and labels by image as flat tensors: image [G] and label [G] (int64), boxes [G, 4], in order.

    Arguments and errors as of `gt_class_localization_loss`.
    """
    if pred_boxes.ndim != 5 or pred_boxes.shape[-1] != 4:
        raise ParameterError(f"pred_boxes must be [B, C, H, W, 4], got {list(pred_boxes.shape)}")
    n_images, n_classes = pred_boxes.shape[:2]
    if not len(boxes) == len(labels) == n_images:
        raise ParameterError(
            f"boxes and labels hold {len(boxes)} and {len(labels)} images, {n_images} were predicted; give one "
            "tensor an image, [0, 4] and [0] where there is no box"
        )
    pairs = [
        (torch.as_tensor(own), torch.as_tensor(names).reshape(-1)) for own, names in zip(boxes, labels, strict=True)
    ]
    for index, (own, names) in enumerate(pairs):
        if len(own) + len(names) and own.shape != (len(names), 4):
            raise ParameterError(
                f"image {index} has boxes {list(own.shape)} and {len(names)} labels; give [G, 4] and [G]"
            )
    image = torch.repeat_interleave(torch.tensor([len(own) for own, _ in pairs], dtype=torch.long))
    if not len(image):
        return image, image.clone(), torch.empty(0, 4)
    # of an image without boxes an empty list would be taken for floats
    target, label = (torch.cat([pair[k] for pair in pairs if len(pair[0])]).cpu() for k in (0, 1))
    if label.is_floating_point() or label.dtype == torch.bool or label.min() < 0 or label.max() >= n_classes:
        raise ParameterError(f"labels are {label.tolist()[:8]}; give whole numbers from 0 to {n_classes - 1}")
    usable = target.isfinite().all(dim=1) & (target[:, 2:] > target[:, :2]).all(dim=1)
    if not usable.all():
        wrong = int((~usable).nonzero()[0])
        seen = target[wrong].tolist()
        raise ParameterError(f"box {wrong} (image {image[wrong]}) is {seen}; it must be finite xyxy with area")
    return image, label.long(), target


def total_of(given: Any) -> Tensor:
    """The scalar to go down of what a loss of the user's own gave: itself, or its attribute `total`.

    Raises:
        TrainingError: it is no scalar tensor with a gradient.
    """
    total = getattr(given, "total", given)
    if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
        seen = f"{list(total.shape)} without a gradient" if isinstance(total, Tensor) else repr(type(given).__name__)
        raise TrainingError(
            "the loss must give a tensor of one number with a gradient, or an object with such a `total`; it gave "
            f"{seen}: compute it from the predictions, and take their mean"
        )
    return total.reshape(())


@dataclass(frozen=True)
class HeatmapLoss(_Terms):
    """The terms of `heatmap_loss`, by attribute or by name: `terms["bce"]`."""

    total: Tensor  # the weighted sum, with gradient
    classification: Tensor
    localization: Tensor  # bce + dice
    sparsity: Tensor
    bce: Tensor
    dice: Tensor


def heatmap_loss(
    logits: Tensor,
    coverage: Tensor,
    *,
    classification_weight: float = 1.0,
    localization_weight: float = 1.0,
    sparsity_weight: float = 1.0,
    positive_weight: float = 1.0,
    focal_gamma: float = 0.0,
) -> HeatmapLoss:
    """What a map should say, where, and nothing else.

    For the logits z of the N patches of a map, p = sigmoid(z), and the shares y of them that boxes of its class cover:

        total = classification_weight · classification + localization_weight · (bce + dice) + sparsity_weight · sparsity

        classification = mean over images and classes of BCE(log(1/N sum exp(z)), 1 where a box of the class is there)
        bce = sum m BCE(z, y) / sum m   with m = 1 + (positive_weight - 1) y, over all images, classes and patches
        dice = mean over the maps with boxes of 1 - (2 sum p y + 1) / (sum p + sum y + 1); 0 where there is no such map
        sparsity = mean of p over the patches that no box of the class touches; 0 where every patch is touched

    Whether a class is there is read from a soft maximum of its map (log-sum-exp: Pinheiro and Collobert 2015,
    arXiv:1411.6228). Dice: Milletari et al. 2016, arXiv:1606.04797. With `focal_gamma` above 0, bce is the focal loss
    for soft targets instead (Li et al. 2020, arXiv:2006.04388): sum m |p - y|^gamma BCE(z, y) / sum y.

    Args:
        logits: [B, C, h, w] of C classes, each asked for on each image.
        coverage: [B, C, h, w] in [0, 1], the share of each patch that the class's boxes cover (`boxes.patch_coverage`).
        classification_weight, localization_weight, sparsity_weight: 0 switches a term off: it is still measured, but
            has no gradient.
        positive_weight: what a wholly covered patch counts against an empty one: few are covered.
        focal_gamma: how much patches that are nearly right are discounted; 0 not at all.

    Raises:
        ParameterError: shapes that differ.
    """
    if logits.ndim != 4 or logits.shape != coverage.shape:
        raise ParameterError(
            f"logits and coverage must both be [B, C, h, w], got {list(logits.shape)} and {list(coverage.shape)}"
        )
    coverage = coverage.to(logits.dtype)
    weights = classification_weight, localization_weight, sparsity_weight
    for_classification, for_localization, for_sparsity = (logits if weight else logits.detach() for weight in weights)
    classification = _classification(for_classification, coverage)
    bce, dice = _localization(for_localization, coverage, positive_weight, focal_gamma)
    outside = (coverage == 0).to(logits.dtype)
    sparsity = (for_sparsity.sigmoid() * outside).sum() / outside.sum().clamp(min=1)
    localization = bce + dice
    total = classification_weight * classification + localization_weight * localization + sparsity_weight * sparsity
    return HeatmapLoss(total, classification, localization, sparsity, bce, dice)


def _classification(logits: Tensor, coverage: Tensor) -> Tensor:
    flat = logits.flatten(2)
    pooled = flat.logsumexp(dim=-1) - torch.log(flat.new_tensor(float(flat.shape[-1])))
    present = (coverage.flatten(2).amax(dim=-1) > 0).to(pooled.dtype)
    return F.binary_cross_entropy_with_logits(pooled, present, reduction="sum") / max(pooled.numel(), 1)


def _localization(
    logits: Tensor, coverage: Tensor, positive_weight: float, focal_gamma: float
) -> tuple[Tensor, Tensor]:
    """bce and dice."""
    tiny = torch.finfo(logits.dtype).tiny
    probability = logits.sigmoid()
    weight = 1 + (positive_weight - 1) * coverage
    entropy = weight * F.binary_cross_entropy_with_logits(logits, coverage, reduction="none")
    if focal_gamma:
        # below gamma 1 a power has no gradient at 0; a clamped value has none either, but a finite one
        off = (probability - coverage).abs().clamp(min=tiny)
        bce = (off**focal_gamma * entropy).sum() / coverage.sum().clamp(min=1)
    else:
        bce = entropy.sum() / weight.sum().clamp(min=tiny)  # of no image 0
    both, p, y = (part.flatten(2).sum(dim=-1) for part in (probability * coverage, probability, coverage))
    present = (y > 0).to(logits.dtype)
    dice = ((1 - (2 * both + 1) / (p + y + 1)) * present).sum() / present.sum().clamp(min=1)
    return bce, dice
