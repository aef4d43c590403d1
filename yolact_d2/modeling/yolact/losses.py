"""YOLACT's losses, each a sum to be normalized by the caller: pure functions of tensors."""

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F


def hardest_negatives(
    logits: Tensor,
    positive: Tensor,
    negative: Tensor,
    negatives_per_positive: int,
    min_negatives: int = 0,
) -> Tensor:
    """Online hard example mining: the negatives with the largest loss as background.

    Args:
        logits: (N, A, C + 1), background last.
        positive, negative: (N, A) bool; anchors that are neither are ignored.
        negatives_per_positive: number of negatives to choose for each positive of an image.
        min_negatives: least number of negatives to choose in an image.

    Returns:
        (N, A) bool.
    """
    background_loss = logits.logsumexp(dim=-1) - logits[..., -1]
    background_loss = background_loss.masked_fill(~negative, -torch.inf)
    rank = background_loss.argsort(dim=1, descending=True).argsort(dim=1)
    num_chosen = negatives_per_positive * positive.sum(dim=1, keepdim=True)
    return (rank < num_chosen.clamp(min=min_negatives)) & negative


def classification_loss(
    logits: Tensor, labels: Tensor, negatives_per_positive: int, min_negatives: int = 0
) -> tuple[Tensor, Tensor]:
    """Softmax cross entropy of the positives and the hardest negatives of each image.

    Args:
        logits: (N, A, C + 1), background last.
        labels: (N, A) in 0..C, where C is background; -1 is ignored.
        negatives_per_positive, min_negatives: see :func:`hardest_negatives`.

    Returns:
        the loss, and the number of negatives in it.
    """
    background = logits.shape[-1] - 1
    positive = (labels >= 0) & (labels < background)
    with torch.no_grad():
        hard = hardest_negatives(
            logits, positive, labels == background, negatives_per_positive, min_negatives
        )
    chosen = positive | hard
    return F.cross_entropy(logits[chosen], labels[chosen], reduction="sum"), hard.sum()


def mask_loss(masks: Tensor, gt_masks: Tensor, gt_boxes: Tensor) -> Tensor:
    """Pixelwise binary cross entropy, divided by the area of the ground-truth box.

    Args:
        masks: (P, h, w) in 0..1, zero outside the ground-truth boxes.
        gt_masks: (P, h, w) bool.
        gt_boxes: (P, 4) XYXY, in grid cells.

    Returns:
        scalar; NaN if a mask has NaN.
    """
    if masks.sum().isnan():
        return masks.sum()  # binary_cross_entropy raises, on a GPU as a fatal assertion
    # Not from logits: like the authors' loss, it costs 100 (where binary_cross_entropy clamps the
    # logarithm) if the crop or rounding makes a wrong prediction exactly 0 or 1.
    pixel_losses = F.binary_cross_entropy(masks, gt_masks.to(masks.dtype), reduction="none")
    return (pixel_losses.sum(dim=(1, 2)) / Boxes(gt_boxes).area()).sum()


def mask_iou(masks: Tensor, gt_masks: Tensor) -> Tensor:
    """IoU of each mask with its ground truth.

    Args:
        masks, gt_masks: (P, h, w) bool.

    Returns:
        (P,), 0 for two empty masks.
    """
    intersection = (masks & gt_masks).sum(dim=(1, 2))
    union = (masks | gt_masks).sum(dim=(1, 2))
    return intersection / union.clamp(min=1)


def semantic_segmentation_loss(logits: Tensor, gt_masks: Tensor, gt_classes: Tensor) -> Tensor:
    """Binary cross entropy of one image against the union of the masks of each class.

    Args:
        logits: (C, h, w).
        gt_masks: (G, h, w) bool.
        gt_classes: (G,) in 0..C-1.

    Returns:
        scalar, the sum over classes of the mean over pixels.
    """
    target = torch.zeros_like(logits)
    target.index_put_((gt_classes,), gt_masks.to(logits.dtype), accumulate=True)
    target.clamp_(max=1)
    num_pixels = logits.shape[1] * logits.shape[2]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / num_pixels
