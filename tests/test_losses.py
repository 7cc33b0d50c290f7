"""The GT-class localisation loss against a slow loop written from its definition, gradients included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surgerylib.errors import ParameterError
from surgerylib.losses import ASSIGNERS, gt_class_localization_loss

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # float64 on both sides


def random_boxes(*shape: int, generator: torch.Generator) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2, generator=generator, dtype=torch.float64)
    low, high = corners.min(dim=-2).values, corners.max(dim=-2).values
    return torch.cat([low, (high + 0.01).clamp(max=1.01)], dim=-1)


def one_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def one_giou(p, g):
    """With gradient: torch scalars."""
    width = (torch.minimum(p[2], g[2]) - torch.maximum(p[0], g[0])).clamp(min=0)
    height = (torch.minimum(p[3], g[3]) - torch.maximum(p[1], g[1])).clamp(min=0)
    inside = width * height
    union = (p[2] - p[0]) * (p[3] - p[1]) + (g[2] - g[0]) * (g[3] - g[1]) - inside
    hull = (torch.maximum(p[2], g[2]) - torch.minimum(p[0], g[0])) * (
        torch.maximum(p[3], g[3]) - torch.minimum(p[1], g[1])
    )
    return inside / union - (hull - union) / hull


def slow_loss(pred, boxes, labels, radius, threshold, l1_weight, giou_weight, assign):
    """Box by box and cell by cell."""
    _, _, height, width, _ = pred.shape
    l1, giou, count, has = pred.sum() * 0, pred.sum() * 0, 0, []
    for image, (of_image, names) in enumerate(zip(boxes, labels, strict=True)):
        for target, label in zip(of_image, names, strict=True):
            best, at = -1.0, None
            for row in range(height):
                for column in range(width):
                    iou = one_iou(pred[image, label, row, column].tolist(), target.tolist())
                    if iou > best:
                        best, at = iou, (row, column)
            if best <= threshold:
                at = None
                if assign == "best_iou_or_center":
                    x, y = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
                    at = (min(int(y * height), height - 1), min(int(x * width), width - 1))
            has.append(at is not None)
            if at is None:
                continue
            for row in range(height):
                for column in range(width):
                    if abs(row - at[0]) <= radius and abs(column - at[1]) <= radius:
                        p = pred[image, label, row, column]
                        l1 = l1 + (p - target).abs().mean()
                        giou = giou + 1 - one_giou(p, target)
                        count += 1
    l1, giou = l1 / max(count, 1), giou / max(count, 1)
    return l1_weight * l1 + giou_weight * giou, l1, giou, count, has


def compare(pred, boxes, labels, **options):
    given = {"radius": 1.5, "iou_threshold": 0.3, "l1_weight": 1.0, "giou_weight": 2.0, "assign": "best_iou"} | options
    ours, slow = (pred.clone().requires_grad_() for _ in range(2))
    terms = gt_class_localization_loss(ours, boxes, labels, **given)
    total, l1, giou, count, has = slow_loss(slow, boxes, labels, *given.values())
    for mine, theirs in ((terms.total, total), (terms.l1, l1), (terms.giou, giou)):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)
    assert terms.num_positives == count
    assert terms.has_positive.tolist() == has
    terms.total.backward()
    total.backward()
    torch.testing.assert_close(ours.grad, slow.grad, **TOLERANCE)
    return terms


@pytest.mark.parametrize("assign", ASSIGNERS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("grid", "radius"), [((7, 7), 1.5), ((3, 5), 0.0), ((6, 4), 2.0)])
def test_the_loss_is_that_of_its_definition(assign, seed, grid, radius):
    generator = torch.Generator().manual_seed(seed)
    pred = random_boxes(3, 4, *grid, generator=generator)
    counts = (5, 0, 2)
    boxes = [random_boxes(n, generator=generator).clamp(max=1) for n in counts]
    labels = [torch.randint(4, (n,), generator=generator) for n in counts]
    compare(pred, boxes, labels, assign=assign, radius=radius, iou_threshold=0.5)
    compare(pred, boxes, labels, assign=assign, radius=radius, l1_weight=0.3, giou_weight=0.0)


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_many_boxes_on_one_cell(assign):
    generator = torch.Generator().manual_seed(1)
    pred = random_boxes(1, 2, 4, 4, generator=generator)
    pred[0, 1, 2, 1] = torch.tensor([0.2, 0.2, 0.6, 0.7])
    target = torch.tensor([0.2, 0.2, 0.6, 0.7], dtype=torch.float64) + 0.001 * torch.arange(6)[:, None]
    terms = compare(pred, [target], [torch.ones(6, dtype=torch.long)], assign=assign)
    assert terms.num_positives == 6 * 9  # each box counts the cells around that one for itself


@pytest.mark.parametrize("assign", ASSIGNERS)
def test_no_boxes_at_all(assign):
    pred = torch.rand(2, 3, 7, 7, 4, requires_grad=True)
    nothing = [torch.empty(0, 4)] * 2, [torch.empty(0, dtype=torch.long)] * 2
    terms = gt_class_localization_loss(pred, *nothing, assign=assign)
    assert terms.total == terms.l1 == terms.giou == terms.num_positives == 0
    assert terms.has_positive.shape == (0,)
    terms.total.backward()
    assert not pred.grad.any()


def test_images_without_boxes_in_any_form():
    """An empty list becomes floats where nobody says otherwise; it must not make labels of the whole batch."""
    pred = torch.rand(3, 3, 4, 4, 4)
    one = torch.tensor([[0.1, 0.1, 0.6, 0.7]])
    for nothing in (torch.tensor([]), np.array([]), np.empty((0, 4)), []):
        terms = gt_class_localization_loss(
            pred, [nothing, one, nothing], [torch.tensor([]), torch.tensor([2]), []], assign="best_iou_or_center"
        )
        assert terms.has_positive.tolist() == [True]


def test_no_positive_under_best_iou_and_the_centre_cell_under_the_other():
    pred = torch.zeros(1, 1, 7, 7, 4, dtype=torch.float64)
    pred[..., 2:] = 0.5  # every cell says the same large box
    small = torch.tensor([[0.70, 0.20, 0.74, 0.24]], dtype=torch.float64)
    label = [torch.zeros(1, dtype=torch.long)]
    none = compare(pred, [small], label)
    assert none.num_positives == 0
    terms = compare(pred, [small], label, assign="best_iou_or_center", radius=0)
    assert terms.num_positives == 1
    pred.requires_grad_()
    gt_class_localization_loss(pred, [small], label, assign="best_iou_or_center", radius=0).total.backward()
    assert pred.grad.abs().sum(dim=-1).nonzero().tolist() == [[0, 0, 1, 5]]  # row and column of the centre


def test_the_iou_must_exceed_the_threshold():
    pred = torch.tensor([0.0, 0.0, 0.5, 1.0]).expand(1, 1, 2, 2, 4)
    target, label = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])], [torch.tensor([0])]
    assert gt_class_localization_loss(pred, target, label, iou_threshold=0.5).num_positives == 0
    assert gt_class_localization_loss(pred, target, label, iou_threshold=0.49).num_positives == 4


def test_giou_reported_as_iou_must_not_come_back():
    """A box apart from every cell has IoU 0 and GIoU below 0; a threshold of 0 tells matching by one from the other."""
    pred = torch.tensor([0.0, 0.0, 0.2, 0.2]).expand(1, 1, 2, 2, 4)
    target, label = [torch.tensor([[0.8, 0.8, 1.0, 1.0]])], [torch.tensor([0])]
    terms = gt_class_localization_loss(pred, target, label, iou_threshold=0.0)
    assert terms.num_positives == 0
    touching = [torch.tensor([[0.19, 0.19, 1.0, 1.0]])]  # IoU 0.0001 > 0, GIoU -0.33
    assert gt_class_localization_loss(pred, touching, label, iou_threshold=0.0).num_positives == 4


def test_other_images_and_classes_have_no_part_in_it():
    generator = torch.Generator().manual_seed(2)
    pred = random_boxes(2, 3, 4, 4, generator=generator).requires_grad_()
    boxes = [random_boxes(2, generator=generator).clamp(max=1), torch.empty(0, 4, dtype=torch.float64)]
    labels = [torch.tensor([1, 1]), torch.empty(0, dtype=torch.long)]
    gt_class_localization_loss(pred, boxes, labels, assign="best_iou_or_center").total.backward()
    assert pred.grad[0, 1].any()
    assert not pred.grad[1].any()
    assert not pred.grad[0, [0, 2]].any()


def test_terms_by_name_and_equal_shapes_in_one_tensor():
    generator = torch.Generator().manual_seed(3)
    pred = random_boxes(2, 3, 4, 4, generator=generator)
    boxes, labels = random_boxes(2, 3, generator=generator).clamp(max=1), torch.randint(3, (2, 3), generator=generator)
    terms = gt_class_localization_loss(pred, boxes, labels)
    listed = gt_class_localization_loss(pred, list(boxes), list(labels))
    for name in ("total", "l1", "giou", "num_positives"):
        assert terms[name] == getattr(listed, name)


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[0.1, 0.1, 0.1, 0.5]], [0], "with area"),
        ([[0.1, 0.1, math.nan, 0.5]], [0], "finite"),
        ([[0.1, 0.1, 0.2, 0.5]], [3], "0 to 2"),
        ([[0.1, 0.1, 0.2, 0.5]], [-1], "0 to 2"),
        ([[0.1, 0.1, 0.2, 0.5]], [0.5], "whole numbers"),
        ([[0.1, 0.1, 0.2, 0.5]], [0, 1], r"\[G, 4\]"),
        ([[0.1, 0.1, 0.2]], [0], r"\[G, 4\]"),
    ],
)
def test_targets_that_cannot_be(boxes, labels, message):
    pred = torch.rand(1, 3, 4, 4, 4)
    with pytest.raises(ParameterError, match=message):
        gt_class_localization_loss(pred, [torch.tensor(boxes)], [torch.tensor(labels)])


def test_arguments_that_cannot_be():
    pred, nothing = torch.rand(1, 3, 4, 4, 4), ([torch.empty(0, 4)], [torch.empty(0, dtype=torch.long)])
    with pytest.raises(ParameterError, match="best_iou, best_iou_or_center"):
        gt_class_localization_loss(pred, *nothing, assign="nearest")
    with pytest.raises(ParameterError, match=r"\[B, C, H, W, 4\]"):
        gt_class_localization_loss(pred[0], *nothing)
    with pytest.raises(ParameterError, match="1 were predicted"):
        gt_class_localization_loss(pred, [], [])
