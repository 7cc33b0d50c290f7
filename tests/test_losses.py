"""The losses against slow loops written from their definitions: of the localiser's boxes, gradients included, and of
the heatmap adapter's logits.
"""

from __future__ import annotations

import math
import re
from itertools import product

import numpy as np
import pytest
import torch
from refusals import refused
from test_metrics import slow_iou

from surgerylib.errors import ParameterError
from surgerylib.losses import ASSIGNERS, gt_class_localization_loss, heatmap_loss

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # float64 on both sides


def random_boxes(*shape: int, generator: torch.Generator) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2, generator=generator, dtype=torch.float64)
    low, high = corners.min(dim=-2).values, corners.max(dim=-2).values
    return torch.cat([low, (high + 0.01).clamp(max=1.01)], dim=-1)


def one_giou(p, g):
    """With gradient: torch scalars."""
    sides = [torch.minimum(p[k + 2], g[k + 2]) - torch.maximum(p[k], g[k]) for k in (0, 1)]
    hull_sides = [torch.maximum(p[k + 2], g[k + 2]) - torch.minimum(p[k], g[k]) for k in (0, 1)]
    inside, hull = sides[0].clamp(min=0) * sides[1].clamp(min=0), hull_sides[0] * hull_sides[1]
    union = (p[2] - p[0]) * (p[3] - p[1]) + (g[2] - g[0]) * (g[3] - g[1]) - inside
    return inside / union - (hull - union) / hull


def slow_loss(pred, boxes, labels, radius, threshold, l1_weight, giou_weight, assign):
    """Box by box and cell by cell."""
    height, width = pred.shape[2:4]
    cells = list(product(range(height), range(width)))
    l1, giou, count, has = pred.sum() * 0, pred.sum() * 0, 0, []
    for image, (of_image, names) in enumerate(zip(boxes, labels, strict=True)):
        for target, label in zip(of_image, names, strict=True):
            own = pred[image, label]
            at = max(cells, key=lambda cell, own=own, target=target: slow_iou(own[cell].tolist(), target.tolist()))
            if slow_iou(own[at].tolist(), target.tolist()) <= threshold:
                x, y = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
                centre = (min(int(y * height), height - 1), min(int(x * width), width - 1))
                at = centre if assign == "best_iou_or_center" else None
            has.append(at is not None)
            for cell in cells if at is not None else ():
                if abs(cell[0] - at[0]) <= radius and abs(cell[1] - at[1]) <= radius:
                    l1 = l1 + (own[cell] - target).abs().mean()
                    giou = giou + 1 - one_giou(own[cell], target)
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


WITH_EACH = pytest.mark.parametrize("assign", ASSIGNERS)


@WITH_EACH
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("grid", "radius"), [((7, 7), 1.5), ((3, 5), 0.0), ((6, 4), 2.0)])
def test_the_loss_is_that_of_its_definition(assign, seed, grid, radius):
    """Gradients too: other images and classes have no part in it, and two boxes on one cell have both theirs."""
    generator = torch.Generator().manual_seed(seed)
    pred = random_boxes(3, 4, *grid, generator=generator)
    boxes = [random_boxes(n, generator=generator).clamp(max=1).repeat(2, 1) for n in (5, 0, 2)]
    labels = [torch.randint(4, (n,), generator=generator).repeat(2) for n in (5, 0, 2)]
    compare(pred, boxes, labels, assign=assign, radius=radius, iou_threshold=0.5)
    compare(pred, boxes, labels, assign=assign, radius=radius, l1_weight=0.3, giou_weight=0.0)


@WITH_EACH
def test_no_boxes_in_any_form(assign):
    """An empty list becomes floats where nobody says otherwise; it must not make labels of the whole batch."""
    pred = torch.rand(3, 3, 4, 4, 4, requires_grad=True)
    one = torch.tensor([[0.1, 0.1, 0.6, 0.7]])
    for nothing in (torch.tensor([]), np.array([]), np.empty((0, 4)), []):
        terms = gt_class_localization_loss(pred, [nothing] * 3, [torch.tensor([]), [], []], assign=assign)
        assert terms.total == terms.l1 == terms.giou == terms.num_positives == 0
        assert terms.has_positive.shape == (0,)
        terms.total.backward()
        assert not pred.grad.any()
        labels = [torch.tensor([]), torch.tensor([2]), []]
        terms = gt_class_localization_loss(pred, [nothing, one, nothing], labels, assign="best_iou_or_center")
        assert terms.has_positive.tolist() == [True]


@pytest.mark.parametrize(("cells", "target", "threshold", "positives"), [
    ((0, 0, 0.2, 0.2), (0.8, 0.8, 1, 1), 0, 0),  # apart: IoU 0, GIoU below 0
    ((0, 0, 0.2, 0.2), (0.19, 0.19, 1, 1), 0, 4),  # IoU 0.0001, GIoU -0.33
    ((0, 0, 0.5, 1), (0, 0, 1, 1), 0.5, 0),  # the IoU must exceed the threshold
    ((0, 0, 0.5, 1), (0, 0, 1, 1), 0.49, 4),
])  # fmt: skip
def test_giou_reported_as_iou_must_not_come_back(cells, target, threshold, positives):
    pred, targets = torch.tensor(cells).float().expand(1, 1, 2, 2, 4), ([torch.tensor([target])], [torch.tensor([0])])
    assert gt_class_localization_loss(pred, *targets, iou_threshold=threshold).num_positives == positives


BOX = [[0.1, 0.1, 0.2, 0.5]]


@pytest.mark.parametrize(("boxes", "labels", "message"), [
    ([[0.1, 0.1, 0.1, 0.5]], [0], "with area"),
    ([[0.1, 0.1, math.nan, 0.5]], [0], "finite"),
    *((BOX, [label], "0 to 2") for label in (3, -1)),
    (BOX, [0.5], "whole numbers"),
    *((*odd, r"\[G, 4\]") for odd in ((BOX, [0, 1]), ([[0.1, 0.1, 0.2]], [0]), ([], [0]), (BOX, []))),
])  # fmt: skip
def test_targets_that_cannot_be(boxes, labels, message):
    targets = [torch.tensor(boxes)], [torch.tensor(labels)]
    refused(gt_class_localization_loss, ParameterError, message, torch.rand(1, 3, 4, 4, 4), *targets)


@pytest.mark.parametrize(("cut", "targets", "assign", "message"), [
    ((), [[]], "nearest", "best_iou, best_iou_or_center"), (0, [[]], "best_iou", r"\[B, C, H, W, 4\]"),
    ((), [], "best_iou", "1 were predicted"),
])  # fmt: skip
def test_arguments_that_cannot_be(cut, targets, assign, message):
    pred = torch.rand(1, 3, 4, 4, 4)[cut]
    refused(gt_class_localization_loss, ParameterError, message, pred, targets, targets, assign=assign)


# ------------------------------------------------------------------------------------------- the heatmap adapter's

TERMS = ("classification", "localization", "sparsity")
ALL = ("total", *TERMS, "bce", "dice")
WITH_OPTIONS = pytest.mark.parametrize("options", [
    {}, {"positive_weight": 10.0}, {"focal_gamma": 2.0}, {"focal_gamma": 0.5}, {"focal_gamma": 1.0},
    {"positive_weight": 0.3, "focal_gamma": 0.5},
])  # fmt: skip


def random_maps(seed: int, shape: tuple[int, ...] = (3, 4, 5, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and coverage with empty maps, empty patches, parts and whole patches."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    coverage = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.8).clamp(0, 1)
    present = torch.rand(shape[:2], generator=generator) < 0.6
    present[0, 0], present[-1, -1] = True, False
    return logits, coverage * present[:, :, None, None]


def slow_heatmap_losses(logits, coverage, positive_weight=1.0, focal_gamma=0.0) -> dict[str, float]:
    """Map by map, from the docstrings."""
    classification, dices = [], []
    for z, y in zip(logits.flatten(0, 1).flatten(1).numpy(), coverage.flatten(0, 1).flatten(1).numpy(), strict=True):
        pooled, p = np.log(np.exp(z).mean()), 1 / (1 + np.exp(-z))
        classification.append(np.log(1 + np.exp(-pooled if y.any() else pooled)))
        if y.any():
            dices.append(1 - (2 * (p @ y) + 1) / (p.sum() + y.sum() + 1))
    z, y = logits.numpy(), coverage.numpy()
    p, weight = 1 / (1 + np.exp(-z)), 1 + (positive_weight - 1) * y
    entropy = weight * (-y * np.log(p) - (1 - y) * np.log(1 / (1 + np.exp(z))))
    if focal_gamma:
        bce = (np.abs(p - y) ** focal_gamma * entropy).sum() / max(y.sum(), 1)
    else:
        bce = entropy.sum() / weight.sum()
    dice = np.mean(dices)
    return {
        "classification": np.mean(classification), "bce": bce, "dice": dice, "localization": bce + dice,
        "sparsity": p[y == 0].mean(),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@WITH_OPTIONS
def test_the_heatmap_losses_are_those_of_their_definitions(seed, options):
    logits, coverage = random_maps(seed)
    weights = {"classification_weight": 0.7, "localization_weight": 1.3, "sparsity_weight": 2.0}
    terms = heatmap_loss(logits, coverage, **weights, **options)
    slow = slow_heatmap_losses(logits, coverage, **options)
    for name, value in slow.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-10, abs=1e-10), name
    total = sum(weights[f"{name}_weight"] * slow[name] for name in TERMS)
    assert float(terms.total) == pytest.approx(total, rel=1e-10, abs=1e-10)


def test_the_gradient_of_the_heatmap_losses_is_that_of_the_values():
    logits, coverage = random_maps(4, (2, 3, 2, 3))
    for options in ({}, {"positive_weight": 5.0, "focal_gamma": 2.0}, {"focal_gamma": 0.5}):
        assert torch.autograd.gradcheck(
            lambda z, options=options: heatmap_loss(z, coverage, **options).total, logits.clone().requires_grad_()
        )


@pytest.mark.parametrize("off", TERMS)
def test_a_weight_of_zero_takes_the_gradient_and_leaves_the_value(off):
    logits, coverage = random_maps(6)
    z, other = (logits.clone().requires_grad_() for _ in range(2))
    weights = {f"{name}_weight": 0.0 if name == off else 1.5 for name in TERMS}
    terms, all_terms = heatmap_loss(z, coverage, **weights), heatmap_loss(other, coverage)
    assert [terms[name].requires_grad for name in TERMS] == [name != off for name in TERMS]
    assert all(terms[name] == all_terms[name] > 0 for name in (*TERMS, "bce", "dice"))
    terms.total.backward()
    sum(1.5 * all_terms[name] for name in TERMS if name != off).backward()
    torch.testing.assert_close(z.grad, other.grad, **TOLERANCE)


@WITH_OPTIONS
def test_images_without_any_box_and_no_image_at_all(options):
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    terms = heatmap_loss(z, torch.zeros(2, 3, 4, 4), **options)
    assert terms.dice == 0
    assert all(terms[name].isfinite() for name in ALL)
    torch.testing.assert_close(terms.sparsity, z.sigmoid().mean())
    terms.total.backward()
    assert (z.grad > 0).all()  # all it can learn is to say less, everywhere
    nothing = z[:0].detach().requires_grad_()
    terms = heatmap_loss(nothing, torch.zeros(0, 3, 4, 4), **options)
    terms.total.backward()
    assert [float(terms[name].detach()) for name in ALL] == [0.0] * 6
    assert nothing.grad.shape == nothing.shape


@pytest.mark.parametrize("size", [1e4, -1e4, 200.0])
@WITH_OPTIONS
def test_extreme_logits_are_finite_in_value_and_gradient(size, options):
    coverage, signs = torch.zeros(2, 2, 3, 3), torch.ones(2, 2, 3, 3)
    coverage[0, 0, 0], coverage[0, 0, 1, 1] = 1, 0.5
    signs[:, :, :, ::2] = -1
    z = (size * signs).requires_grad_()
    terms = heatmap_loss(z, coverage, **options)
    terms.total.backward()
    assert all(terms[name].isfinite() for name in ALL)
    assert z.grad.isfinite().all()


def test_bug_the_focal_loss_below_gamma_one_had_no_gradient_where_a_patch_is_exactly_right():
    """A power below 1 has an infinite slope at 0: a saturated patch, or one at its share, made the gradient NaN."""
    coverage = torch.tensor([0.0, 1.0, 0.5, 0.0]).view(1, 1, 2, 2)
    z = torch.tensor([-1e4, 1e4, 0.0, 2.0]).view(1, 1, 2, 2).requires_grad_()
    heatmap_loss(z, coverage, focal_gamma=0.5).bce.backward()
    *right, wrong = z.grad.flatten().tolist()
    assert right == [0, 0, 0]
    assert 0 < wrong < math.inf


def test_maps_of_other_shapes():
    for logits, coverage in (((2, 3, 4, 4), (2, 3, 4, 5)), ((3, 4, 4), (3, 4, 4))):
        shown = re.escape(f"must both be [B, C, h, w], got {list(logits)} and {list(coverage)}")
        refused(heatmap_loss, ParameterError, shown, torch.zeros(logits), torch.zeros(coverage))
