"""Edge cases of the losses. Their values in a batch: see test_criterion.py."""

import math

import pytest
import torch

from yolact_d2.modeling.losses import (
    classification_loss,
    hardest_negatives,
    mask_iou,
    mask_loss,
    semantic_segmentation_loss,
)
from yolact_d2.modeling.masks import soft_masks

BACKGROUND = 3


def _cross_entropy(logits, label):
    largest = max(logits)
    return largest + math.log(sum(math.exp(x - largest) for x in logits)) - logits[label]


def _labels(positives, negatives, ignored, generator):
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


@pytest.mark.parametrize("images", COMPOSITIONS.values(), ids=COMPOSITIONS.keys())
@pytest.mark.parametrize("ratio, minimum", [(1, 0), (3, 0), (3, 7), (0, 9)])
def test_classification_loss_equals_the_loop(images, ratio, minimum):
    generator = torch.Generator().manual_seed(sum(images[0]) + images[0][0])
    labels = torch.stack([_labels(*image, generator) for image in images])
    logits = 3 * torch.randn(*labels.shape, BACKGROUND + 1, generator=generator)
    positive, negative = (labels >= 0) & (labels < BACKGROUND), labels == BACKGROUND
    found = hardest_negatives(logits, positive, negative, ratio, minimum)
    total = 0
    for image_logits, image_labels, image_found in zip(logits.tolist(), labels.tolist(), found):
        losses = {
            a: _cross_entropy(image_logits[a], label)
            for a, label in enumerate(image_labels)
            if label >= 0
        }
        positives = [a for a in losses if image_labels[a] != BACKGROUND]
        negatives = sorted(losses.keys() - positives, key=lambda a: -losses[a])
        hardest = negatives[: max(ratio * len(positives), minimum)]
        assert set(image_found.nonzero().flatten().tolist()) == set(hardest)
        total += sum(losses[a] for a in positives + hardest)
    loss, num_negatives = classification_loss(logits, labels, ratio, minimum)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert num_negatives == found.sum()


@pytest.mark.parametrize("background_logit", [0.0, 100.0], ids=["equal loss", "no loss"])
def test_number_of_hardest_negatives_with_equal_losses(background_logit):
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
    classification_loss(logits, labels, 1)[0].backward()
    assert logits.grad.abs().sum(dim=-1).bool().tolist() == [[True, True, False, False, False]]
    softmax = logits.detach().softmax(dim=-1)
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, BACKGROUND]), BACKGROUND + 1)
    torch.testing.assert_close(logits.grad[0, :2], softmax[0, :2] - one_hot)


def _mask_inputs(boxes):
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(5, 7, 9, generator=generator)
    coefficients = torch.rand(len(boxes), 5, generator=generator) * 2 - 1
    gt_masks = torch.rand(len(boxes), 7, 9, generator=generator) < 0.4
    return prototypes, coefficients, gt_masks, torch.tensor(boxes)


def _loss_of_assembled(prototypes, coefficients, gt_masks, gt_boxes):
    return mask_loss(soft_masks(prototypes, coefficients, gt_boxes), gt_masks, gt_boxes)


BOXES = [[2.3, 1.7, 6.1, 4.9], [0.2, 0.4, 3.9, 6.5]]


def test_mask_loss_gradient():
    prototypes, coefficients, gt_masks, boxes = _mask_inputs(BOXES)
    inputs = prototypes.double().requires_grad_(), coefficients.double().requires_grad_()
    boxes = boxes.double()
    torch.autograd.gradcheck(lambda p, c: _loss_of_assembled(p, c, gt_masks, boxes), inputs)


def test_losses_with_huge_logits_have_finite_gradients():
    logits = (1e4 * torch.randn(1, 30, 4)).requires_grad_()
    loss, _ = classification_loss(logits, torch.arange(30)[None] % 5 - 1, 3)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    for magnitude in (50.0, 1e4, 1e8):
        prototypes, coefficients, gt_masks, boxes = _mask_inputs(BOXES)
        inputs = (magnitude * prototypes).requires_grad_(), coefficients.requires_grad_()
        loss = _loss_of_assembled(*inputs, gt_masks, boxes)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("logit, cost", [(1e4, 100.0), (40.0, 100.0), (8.0, 8.000335)])
def test_a_wrong_pixel_costs_at_most_100(logit, cost):
    """As in the authors' code, where the sigmoid rounds to 1."""
    prototypes, coefficients = torch.full((1, 4, 4), logit), torch.ones(1, 1)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    loss = _loss_of_assembled(prototypes, coefficients, target, boxes)
    assert loss.item() == pytest.approx(cost, 1e-3)


def test_mask_loss_of_nan_is_nan():
    masks, boxes = torch.full((1, 4, 4), torch.nan), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert mask_loss(masks, torch.zeros(1, 4, 4, dtype=torch.bool), boxes).isnan()


def test_overlapping_objects_of_a_class_count_once_in_semantic_segmentation():
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :3], masks[1, 1:] = True, True
    both = semantic_segmentation_loss(logits, masks, torch.tensor([1, 1]))
    union = semantic_segmentation_loss(logits, masks.any(dim=0)[None], torch.tensor([1]))
    assert both.item() == union.item()


def test_mask_iou():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 5, 6, generator=generator) < 0.5
    gt_masks = torch.rand(4, 5, 6, generator=generator) < 0.7
    masks[2], gt_masks[3] = False, masks[3]
    expected = []
    for mask, gt_mask in zip(masks.flatten(1).tolist(), gt_masks.flatten(1).tolist()):
        pairs = list(zip(mask, gt_mask))
        expected.append(sum(x and y for x, y in pairs) / sum(x or y for x, y in pairs))
    assert mask_iou(masks, gt_masks).tolist() == pytest.approx(expected)
    assert expected[2:] == [0, 1]
    empty = torch.zeros(1, 5, 6, dtype=torch.bool)
    assert mask_iou(empty, empty).item() == 0
