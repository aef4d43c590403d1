"""Edge cases of the losses. Their values in a batch: see test_criterion.py."""

import pytest
import torch

from yolact_d2.modeling.yolact.losses import (
    classification_loss,
    hardest_negatives,
    mask_iou,
    mask_loss,
)
from yolact_d2.modeling.yolact.masks import soft_masks

BACKGROUND = 3


def _labels(positives, negatives, ignored, generator):
    classes = torch.randint(BACKGROUND, (positives,), generator=generator).tolist()
    labels = torch.tensor([*classes, *[BACKGROUND] * negatives, *[-1] * ignored])
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
    losses = -logits.double().log_softmax(dim=-1)
    for i, image_labels in enumerate(labels.tolist()):
        positives = [a for a, label in enumerate(image_labels) if label not in (BACKGROUND, -1)]
        negatives = [a for a, label in enumerate(image_labels) if label == BACKGROUND]
        negatives.sort(key=lambda a: losses[i, a, BACKGROUND], reverse=True)
        hardest = negatives[: max(ratio * len(positives), minimum)]
        assert set(found[i].nonzero().flatten().tolist()) == set(hardest)
        total += sum(losses[i, a, image_labels[a]].item() for a in positives + hardest)
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


def _loss_of_assembled(prototypes, coefficients, gt_masks, gt_boxes):
    return mask_loss(soft_masks(prototypes, coefficients, gt_boxes), gt_masks, gt_boxes)


def test_mask_loss_gradient():
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(5, 7, 9, generator=generator).double().requires_grad_()
    coefficients = (torch.rand(2, 5, generator=generator) * 2 - 1).double().requires_grad_()
    gt_masks = torch.rand(2, 7, 9, generator=generator) < 0.4
    boxes = torch.tensor([[2.3, 1.7, 6.1, 4.9], [0.2, 0.4, 3.9, 6.5]]).double()
    inputs = prototypes, coefficients
    torch.autograd.gradcheck(lambda p, c: _loss_of_assembled(p, c, gt_masks, boxes), inputs)


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


def test_mask_iou():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 5, 6, generator=generator) < 0.5
    gt_masks = torch.rand(4, 5, 6, generator=generator) < 0.7
    masks[2], gt_masks[3] = False, masks[3]
    pairs = list(zip(masks, gt_masks))
    expected = [(x & y).sum().item() / (x | y).sum().item() for x, y in pairs]
    assert mask_iou(masks, gt_masks).tolist() == pytest.approx(expected)
    assert expected[2:] == [0, 1]
    assert mask_iou(masks[2:3], masks[2:3]).item() == 0  # both are empty
