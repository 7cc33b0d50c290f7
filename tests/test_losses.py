"""The losses against slow loops written from their definitions: of the localiser's boxes, gradients included, and of
the heatmap adapter's logits.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from test_metrics import slow_iou

from surgerylib.errors import ParameterError
from surgerylib.losses import (
    ASSIGNERS,
    gt_class_localization_loss,
    heatmap_classification_loss,
    heatmap_localization_loss,
    heatmap_loss,
    heatmap_sparsity_loss,
)

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


@pytest.mark.parametrize("assign", ASSIGNERS)
@pytest.mark.parametrize("seed", range(2))
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


@pytest.mark.parametrize(("boxes", "labels", "message"), [
    ([[0.1, 0.1, 0.1, 0.5]], [0], "with area"),
    ([[0.1, 0.1, math.nan, 0.5]], [0], "finite"),
    ([[0.1, 0.1, 0.2, 0.5]], [3], "0 to 2"),
    ([[0.1, 0.1, 0.2, 0.5]], [-1], "0 to 2"),
    ([[0.1, 0.1, 0.2, 0.5]], [0.5], "whole numbers"),
    ([[0.1, 0.1, 0.2, 0.5]], [0, 1], r"\[G, 4\]"),
    ([[0.1, 0.1, 0.2]], [0], r"\[G, 4\]"),
])  # fmt: skip
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


# ------------------------------------------------------------------------------------------- the heatmap adapter's

TERMS = ("classification", "localization", "sparsity")


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
@pytest.mark.parametrize("options", [{}, {"positive_weight": 10.0}, {"focal_gamma": 2.0},
                                     {"positive_weight": 0.3, "focal_gamma": 0.5}])  # fmt: skip
def test_the_heatmap_losses_are_those_of_their_definitions(seed, options):
    logits, coverage = random_maps(seed)
    weights = {"classification_weight": 0.7, "localization_weight": 1.3, "sparsity_weight": 2.0}
    terms = heatmap_loss(logits, coverage, **weights, **options)
    slow = slow_heatmap_losses(logits, coverage, **options)
    for name, value in slow.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-10, abs=1e-10), name
    total = sum(weights[f"{name}_weight"] * slow[name] for name in TERMS)
    assert float(terms.total) == pytest.approx(total, rel=1e-10, abs=1e-10)
    assert float(heatmap_classification_loss(logits, coverage)) == float(terms.classification)
    assert heatmap_localization_loss(logits, coverage, **options) == (terms.bce, terms.dice)
    assert float(heatmap_sparsity_loss(logits, coverage)) == float(terms.sparsity)


def test_the_gradient_of_the_heatmap_losses_is_that_of_the_values():
    logits, coverage = random_maps(4, (2, 3, 2, 3))
    for options in ({}, {"positive_weight": 5.0, "focal_gamma": 2.0}, {"focal_gamma": 0.5}):
        assert torch.autograd.gradcheck(
            lambda z, options=options: heatmap_loss(z, coverage, **options).total, logits.clone().requires_grad_()
        )


def test_tiny_maps_by_hand():
    """Two classes of two patches, logits 0 and log 3: probabilities 1/2 and 3/4. The second class is absent."""
    logits = torch.tensor([[[[0.0, math.log(3)]], [[0.0, math.log(3)]]]], dtype=torch.float64)
    coverage = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]]]], dtype=torch.float64)
    # pooled: log((1 + 3) / 2) = log 2: a probability of 2/3, once right, once wrong
    expected = (-math.log(2 / 3) - math.log(1 / 3)) / 2
    assert float(heatmap_classification_loss(logits, coverage)) == pytest.approx(expected)
    bce, dice = heatmap_localization_loss(logits, coverage)
    assert float(bce) == pytest.approx(-(math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 4)
    assert float(dice) == pytest.approx(1 - (2 * 3 / 4 + 1) / (5 / 4 + 1 + 1))  # of the map with a box alone
    bce, _ = heatmap_localization_loss(logits, coverage, positive_weight=3)
    assert float(bce) == pytest.approx(-(math.log(1 / 2) + 3 * math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 6)
    bce, _ = heatmap_localization_loss(logits, coverage, focal_gamma=2)
    focal = (math.log(1 / 2) / 4, math.log(3 / 4) / 16, math.log(1 / 2) / 4, math.log(1 / 4) * 9 / 16)
    assert float(bce) == pytest.approx(-sum(focal))  # one patch is covered
    assert float(heatmap_sparsity_loss(logits, coverage)) == pytest.approx((1 / 2 + 1 / 2 + 3 / 4) / 3)


@pytest.mark.parametrize("off", TERMS)
def test_a_weight_of_zero_takes_the_gradient_and_leaves_the_value(off):
    logits, coverage = random_maps(6)
    weights = {f"{name}_weight": 0.0 if name == off else 1.5 for name in TERMS}
    z = logits.clone().requires_grad_()
    terms = heatmap_loss(z, coverage, **weights, positive_weight=4.0)
    assert not terms[off].requires_grad
    assert all(terms[name].requires_grad for name in TERMS if name != off)
    everything = heatmap_loss(logits, coverage, positive_weight=4.0)
    for name in (*TERMS, "bce", "dice"):
        assert float(terms[name].detach()) == float(everything[name]) > 0
    terms.total.backward()
    other = logits.clone().requires_grad_()
    bce, dice = heatmap_localization_loss(other, coverage, positive_weight=4.0)
    alone = {
        "classification": heatmap_classification_loss(other, coverage),
        "localization": bce + dice,
        "sparsity": heatmap_sparsity_loss(other, coverage),
    }
    sum(1.5 * value for name, value in alone.items() if name != off).backward()
    torch.testing.assert_close(z.grad, other.grad, **TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"positive_weight": 10.0}, {"focal_gamma": 2.0}, {"focal_gamma": 0.5}])
def test_images_without_any_box(options):
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    terms = heatmap_loss(z, torch.zeros(2, 3, 4, 4), **options)
    assert terms.dice == 0
    assert all(terms[name].isfinite() for name in ("total", *TERMS, "bce"))
    torch.testing.assert_close(terms.sparsity, z.sigmoid().mean())
    terms.total.backward()
    assert (z.grad > 0).all()  # all it can learn is to say less, everywhere


@pytest.mark.parametrize("size", [1e4, -1e4, 200.0])
@pytest.mark.parametrize("options", [{}, {"positive_weight": 10.0}, {"focal_gamma": 2.0}, {"focal_gamma": 1.0}])
def test_extreme_logits_are_finite_in_value_and_gradient(size, options):
    coverage = torch.zeros(2, 2, 3, 3)
    coverage[0, 0, 0], coverage[0, 0, 1, 1] = 1, 0.5
    signs = torch.ones(2, 2, 3, 3)
    signs[:, :, :, ::2] = -1
    z = (size * signs).requires_grad_()
    terms = heatmap_loss(z, coverage, **options)
    terms.total.backward()
    assert all(terms[name].isfinite() for name in ("total", *TERMS, "bce", "dice"))
    assert z.grad.isfinite().all()


def test_bug_the_focal_loss_below_gamma_one_had_no_gradient_where_a_patch_is_exactly_right():
    """A power below 1 has an infinite slope at 0: a saturated patch, or one at its share, made the gradient NaN."""
    coverage = torch.tensor([0.0, 1.0, 0.5, 0.0]).view(1, 1, 2, 2)
    z = torch.tensor([-1e4, 1e4, 0.0, 2.0]).view(1, 1, 2, 2).requires_grad_()
    bce, _ = heatmap_localization_loss(z, coverage, focal_gamma=0.5)
    bce.backward()
    assert z.grad.flatten()[:3].tolist() == [0, 0, 0]
    assert z.grad.flatten()[3] > 0
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "coverage"), [((2, 3, 4, 4), (2, 3, 4, 5)), ((2, 3, 4, 4), (1, 3, 4, 4)), ((3, 4, 4), (3, 4, 4))]
)
def test_maps_of_other_shapes(logits, coverage):
    for loss in (heatmap_loss, heatmap_classification_loss, heatmap_localization_loss, heatmap_sparsity_loss):
        with pytest.raises(ParameterError, match=r"must both be \[B, C, h, w\]") as raised:
            loss(torch.zeros(logits), torch.zeros(coverage))
        assert str(list(logits)) in str(raised.value)
        assert str(list(coverage)) in str(raised.value)


def test_the_heatmap_losses_of_no_image_are_zero_with_a_gradient():
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    terms = heatmap_loss(logits, torch.zeros(0, 3, 4, 4))
    terms.total.backward()
    assert [float(terms[name].detach()) for name in ("total", "classification", "bce", "dice", "sparsity")] == [0.0] * 5
    assert logits.grad.shape == logits.shape
