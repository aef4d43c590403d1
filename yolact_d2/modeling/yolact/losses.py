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


def dice_loss(masks: Tensor, gt_masks: Tensor) -> Tensor:
    """1 - Dice coefficient (arXiv 1606.04797, equation 1, without squares), smoothed by 1 cell.

    Args:
        masks: (P, h, w) in 0..1.
        gt_masks: (P, h, w) bool.

    Returns:
        scalar, the sum over masks.
    """
    overlap = (masks * gt_masks).sum(dim=(1, 2))
    total = masks.sum(dim=(1, 2)) + gt_masks.sum(dim=(1, 2))
    return (1 - (2 * overlap + 1) / (total + 1)).sum()


def quality_focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss (arXiv 2006.04388, equation 2): |target - p|^`gamma` x cross entropy.

    Args:
        logits, targets: of one shape; targets are in 0..1.

    Returns:
        not reduced.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses * (targets - logits.sigmoid()).abs() ** gamma


def varifocal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (arXiv 2008.13367, equation 2): cross entropy, weighted by the target where it
    is above 0, and by `alpha` x p^`gamma` elsewhere.

    Args:
        logits, targets: of one shape; targets are in 0..1.

    Returns:
        not reduced.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = torch.where(targets > 0, targets, alpha * logits.sigmoid() ** gamma)
    return losses * weights


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
