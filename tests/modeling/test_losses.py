"""Losses against loops in double precision."""

import math

import numpy as np
import pytest
import torch
from plain import bilinear

from yolact_d2.modeling.losses import (
    box_regression_loss,
    classification_loss,
    downsample_masks,
    hardest_negatives,
    mask_iou,
    mask_iou_loss,
    mask_loss,
    semantic_segmentation_loss,
)
from yolact_d2.modeling.masks import soft_masks

# A sum of some hundred float32 terms of one sign.
TOLERANCE = 1e-5
BACKGROUND = 3


def _cross_entropy(logits, label):
    largest = max(logits)
    total = sum(math.exp(x - largest) for x in logits)
    return largest + math.log(total) - logits[label]


def _hardest(logits, negatives, number):
    losses = [_cross_entropy(anchor, len(anchor) - 1) for anchor in logits]
    return set(sorted(negatives, key=lambda a: -losses[a])[:number])


def _random_labels(positives, negatives, ignored, generator):
    labels = torch.cat(
        [
            torch.randint(BACKGROUND, (positives,), generator=generator),
            torch.full((negatives,), BACKGROUND),
            torch.full((ignored,), -1),
        ]
    )
    return labels[torch.randperm(len(labels), generator=generator)]


COMPOSITIONS = {
    "usual": [(4, 40, 6), (2, 45, 3)],
    "fewer negatives than wanted": [(12, 5, 33), (20, 30, 0)],
    "an image without positives": [(0, 40, 10), (5, 40, 5)],
    "no positives": [(0, 50, 0), (0, 0, 50)],
    "no negatives": [(50, 0, 0), (10, 0, 40)],
}


@pytest.fixture(params=COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
def classified(request):
    generator = torch.Generator().manual_seed(sum(request.param[0]) + request.param[0][0])
    labels = torch.stack([_random_labels(*image, generator) for image in request.param])
    logits = 3 * torch.randn(*labels.shape, BACKGROUND + 1, generator=generator)
    return logits, labels


@pytest.mark.parametrize("ratio", [1, 3])
def test_hardest_negatives(classified, ratio):
    logits, labels = classified
    positive, negative = (labels >= 0) & (labels < BACKGROUND), labels == BACKGROUND
    chosen = hardest_negatives(logits, positive, negative, ratio)
    for i in range(len(labels)):
        candidates = negative[i].nonzero().squeeze(1).tolist()
        expected = _hardest(logits[i].tolist(), candidates, ratio * int(positive[i].sum()))
        assert set(chosen[i].nonzero().squeeze(1).tolist()) == expected


@pytest.mark.parametrize("ratio", [1, 3])
def test_classification_loss(classified, ratio):
    logits, labels = classified
    expected = 0
    for image_logits, image_labels in zip(logits.tolist(), labels.tolist()):
        positives = [a for a, label in enumerate(image_labels) if 0 <= label < BACKGROUND]
        negatives = [a for a, label in enumerate(image_labels) if label == BACKGROUND]
        hardest = _hardest(image_logits, negatives, ratio * len(positives))
        expected += sum(_cross_entropy(image_logits[a], image_labels[a]) for a in positives)
        expected += sum(_cross_entropy(image_logits[a], BACKGROUND) for a in hardest)
    loss = classification_loss(logits, labels, ratio)
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("background_logit", [0.0, 100.0], ids=["equal loss", "no loss"])
def test_as_many_equal_negatives_as_wanted(background_logit):
    logits = torch.zeros(1, 20, 4)
    logits[..., -1] = background_logit
    positive = torch.zeros(1, 20, dtype=torch.bool)
    positive[0, [0, 1, 18, 19]] = True
    chosen = hardest_negatives(logits, positive, ~positive, 3)
    assert chosen.sum() == 12 and not (chosen & positive).any()


def test_ignored_and_easy_anchors_have_no_gradient():
    labels = torch.tensor([[0, BACKGROUND, BACKGROUND, -1, -1]])
    logits = torch.tensor(
        [[[0.0, 0, 0, 0], [5, 0, 0, 0], [0, 0, 0, 5], [9, 0, 0, 0], [0, 0, 0, 9]]],
        requires_grad=True,
    )
    classification_loss(logits, labels, 1).backward()
    assert logits.grad.abs().sum(dim=-1).bool().tolist() == [[True, True, False, False, False]]
    softmax = logits.detach().softmax(dim=-1)
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, BACKGROUND]), BACKGROUND + 1)
    torch.testing.assert_close(logits.grad[0, :2], softmax[0, :2] - one_hot)


def test_classification_loss_of_nothing_is_zero_and_in_the_graph():
    logits = torch.randn(2, 6, 4, requires_grad=True)
    loss = classification_loss(logits, torch.full((2, 6), BACKGROUND), 3)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_classification_loss_with_huge_logits_is_finite():
    logits = (1e4 * torch.randn(1, 30, 4)).requires_grad_()
    labels = torch.arange(30)[None] % 5 - 1
    loss = classification_loss(logits, labels, 3)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def _smooth_l1(difference):
    difference = abs(difference)
    return difference**2 / 2 if difference < 1 else difference - 0.5


def test_box_regression_loss():
    generator = torch.Generator().manual_seed(0)
    deltas = 2 * torch.randn(30, 4, generator=generator)
    gt_deltas = torch.randn(30, 4, generator=generator)
    gt_deltas[0] = deltas[0] + torch.tensor([1.0, -1.0, 0.0, 0.25])
    differences = (deltas.double() - gt_deltas.double()).flatten().tolist()
    assert min(map(abs, differences)) < 1 < max(map(abs, differences))
    expected = sum(map(_smooth_l1, differences))
    assert box_regression_loss(deltas, gt_deltas).item() == pytest.approx(expected, rel=TOLERANCE)


def test_box_regression_loss_of_nothing_is_zero_and_in_the_graph():
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = box_regression_loss(deltas, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0 and deltas.grad.shape == (0, 4)


@pytest.mark.parametrize(
    "num, size, grid",
    [
        # An odd side on an odd grid (550 on 138 is 275 on 69) never gives exactly 0.5.
        (3, (17, 23), (5, 7)),
        (3, (9, 5), (13, 11)),
        (2, (7, 9), (7, 9)),
        (1, (550, 550), (138, 138)),
        # Four times finer: the mean of four pixels, exact in float32, often 0.5.
        (5, (32, 48), (8, 12)),
    ],
)
def test_downsample_masks(num, size, grid):
    masks = torch.rand(num, *size, generator=torch.Generator().manual_seed(num)) < 0.5
    expected = [bilinear(mask, *grid) > 0.5 for mask in masks.numpy().astype(float)]
    result = downsample_masks(masks, grid)
    assert result.dtype == torch.bool
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_downsampling_looks_only_at_the_nearest_pixels():
    """Antialiasing would see the lines beside them."""
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[:, [0, 3, 4, 7]] = False
    mask[:, :, [0, 3, 4, 7]] = False
    assert downsample_masks(mask, (2, 2)).all()


def test_a_half_covered_cell_is_background():
    mask = torch.tensor([[[1, 1], [0, 0]], [[1, 1], [1, 0]]], dtype=torch.bool)
    assert downsample_masks(mask, (1, 1)).flatten().tolist() == [False, True]


def test_downsampling_no_masks():
    assert downsample_masks(torch.zeros(0, 8, 8, dtype=torch.bool), (3, 4)).shape == (0, 3, 4)


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def _clamped_log(x):
    return max(math.log(x), -100) if x > 0 else -100


def _mask_loss(prototypes, coefficients, gt_masks, gt_boxes):
    total = 0
    for weights, target, (x1, y1, x2, y2) in zip(coefficients, gt_masks, gt_boxes):
        cells = 0
        for row in range(prototypes.shape[1]):
            for column in range(prototypes.shape[2]):
                predicted = _sigmoid(sum(weights * prototypes[:, row, column]))
                if not (x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1):
                    predicted = 0
                chance = predicted if target[row, column] else 1 - predicted
                cells -= _clamped_log(chance)
        total += cells / ((x2 - x1) * (y2 - y1))
    return total


MASK_BOXES = {
    "inside": [[2.3, 1.7, 6.1, 4.9], [0.2, 0.4, 3.9, 6.5]],
    "on cells": [[2.0, 3.0, 5.0, 6.0], [1.0, 1.0, 8.0, 2.0]],
    "beyond the grid": [[-3.0, -1.5, 4.0, 3.0], [5.5, 4.5, 14.0, 11.0]],
    "smaller than a cell": [[3.4, 2.4, 3.9, 2.6]],
    "whole grid": [[0.0, 0.0, 9.0, 7.0]],
    "no positives": [],
}


def _mask_inputs(boxes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num = len(boxes)
    prototypes = torch.randn(5, 7, 9, generator=generator)
    coefficients = torch.rand(num, 5, generator=generator) * 2 - 1
    gt_masks = torch.rand(num, 7, 9, generator=generator) < 0.4
    return prototypes, coefficients, gt_masks, torch.tensor(boxes).reshape(-1, 4)


def _loss_of_assembled(prototypes, coefficients, gt_masks, gt_boxes):
    return mask_loss(soft_masks(prototypes, coefficients, gt_boxes), gt_masks, gt_boxes)


@pytest.mark.parametrize("boxes", MASK_BOXES.values(), ids=MASK_BOXES.keys())
def test_mask_loss(boxes):
    inputs = _mask_inputs(boxes)
    expected = _mask_loss(*(x.double().numpy() for x in inputs))
    assert _loss_of_assembled(*inputs).item() == pytest.approx(expected, rel=TOLERANCE)


def test_mask_loss_learns_only_inside_the_box_and_its_margin():
    prototypes, coefficients, gt_masks, boxes = _mask_inputs([[2.0, 3.0, 5.0, 6.0]])
    prototypes.requires_grad_()
    _loss_of_assembled(prototypes, coefficients, gt_masks, boxes).backward()
    learns = torch.zeros(7, 9, dtype=torch.bool)
    learns[2:7, 1:6] = True
    assert torch.equal(prototypes.grad.ne(0).any(dim=0), learns)


def test_mask_loss_gradient():
    prototypes, coefficients, gt_masks, boxes = _mask_inputs(MASK_BOXES["inside"])
    inputs = prototypes.double().requires_grad_(), coefficients.double().requires_grad_()
    boxes = boxes.double()
    torch.autograd.gradcheck(lambda p, c: _loss_of_assembled(p, c, gt_masks, boxes), inputs)


@pytest.mark.parametrize("magnitude", [50.0, 1e4, 1e8])
def test_mask_loss_with_huge_logits_has_a_finite_gradient(magnitude):
    prototypes, coefficients, gt_masks, boxes = _mask_inputs(MASK_BOXES["inside"])
    prototypes = (magnitude * prototypes).requires_grad_()
    coefficients.requires_grad_()
    loss = _loss_of_assembled(prototypes, coefficients, gt_masks, boxes)
    loss.backward()
    assert loss.isfinite()
    for gradient in (prototypes.grad, coefficients.grad):
        assert gradient.isfinite().all()


def test_mask_loss_of_nothing_is_zero_and_in_the_graph():
    prototypes, coefficients, gt_masks, boxes = _mask_inputs([])
    prototypes.requires_grad_()
    loss = _loss_of_assembled(prototypes, coefficients, gt_masks, boxes)
    loss.backward()
    assert loss.item() == 0 and not prototypes.grad.any()


def _semantic_loss(logits, gt_masks, gt_classes):
    total = 0
    num_classes, height, width = logits.shape
    for c in range(num_classes):
        for row in range(height):
            for column in range(width):
                covered = any(mask[row, column] for mask, k in zip(gt_masks, gt_classes) if k == c)
                predicted = _sigmoid(logits[c, row, column])
                total -= math.log(predicted if covered else 1 - predicted)
    return total / (height * width)


@pytest.mark.parametrize("classes", [[2, 0, 2, 2], [1], [0, 0], []])
def test_semantic_segmentation_loss(classes):
    generator = torch.Generator().manual_seed(len(classes))
    logits = 2 * torch.randn(4, 5, 6, generator=generator)
    masks = torch.rand(len(classes), 5, 6, generator=generator) < 0.6
    expected = _semantic_loss(logits.double().numpy(), masks.numpy(), classes)
    loss = semantic_segmentation_loss(logits, masks, torch.tensor(classes, dtype=torch.int64))
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE)


def test_objects_of_a_class_that_overlap_count_once():
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :3], masks[1, 1:] = True, True
    both = semantic_segmentation_loss(logits, masks, torch.tensor([1, 1]))
    union = semantic_segmentation_loss(logits, masks.any(dim=0)[None], torch.tensor([1]))
    assert both.item() == union.item()


@pytest.mark.parametrize("logit, cost", [(1e4, 100.0), (40.0, 100.0), (8.0, 8.000335)])
def test_a_wrong_cell_costs_no_more_than_the_clamped_logarithm(logit, cost):
    """As where the authors' sigmoid has rounded to one."""
    prototypes, coefficients = torch.full((1, 4, 4), logit), torch.ones(1, 1)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    loss = _loss_of_assembled(prototypes, coefficients, target, boxes)
    assert loss.item() == pytest.approx(cost, 1e-3)


def test_mask_iou():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 5, 6, generator=generator) < 0.5
    gt_masks = torch.rand(4, 5, 6, generator=generator) < 0.7
    masks[2], gt_masks[3] = False, masks[3]
    expected = []
    for mask, gt_mask in zip(masks.tolist(), gt_masks.tolist()):
        pairs = [(x, y) for row, gt_row in zip(mask, gt_mask) for x, y in zip(row, gt_row)]
        expected.append(sum(x and y for x, y in pairs) / sum(x or y for x, y in pairs))
    assert mask_iou(masks, gt_masks).tolist() == pytest.approx(expected)
    assert expected[2:] == [0, 1]
    nothing = torch.zeros(1, 5, 6, dtype=torch.bool)
    assert mask_iou(nothing, nothing).item() == 0


def test_mask_iou_loss():
    ious, gt_ious = torch.tensor([0.2, 0.9, 3.0]), torch.tensor([0.5, 0.9, 1.0])
    assert mask_iou_loss(ious, gt_ious).item() == pytest.approx(0.3**2 / 2 + 0 + 2 - 0.5)
