"""YOLACT's losses, each a sum over what it looks at: pure functions of tensors.

Their caller, :class:`YOLACTCriterion`, divides them.
"""

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

# Bounds the memory of a resize: pixels of ground-truth masks that are float at the same time.
_MAX_FLOAT_PIXELS = 2**24


def hardest_negatives(
    logits: Tensor, positive: Tensor, negative: Tensor, negatives_per_positive: int
) -> Tensor:
    """Online hard example mining: the negatives that look least like background.

    Args:
        logits: (N, A, C + 1), background last.
        positive, negative: (N, A) bool, never both; what is neither is ignored.
        negatives_per_positive: how many to choose in each image, for each of its positives.

    Returns:
        (N, A) bool.
    """
    background_loss = logits.logsumexp(dim=-1) - logits[..., -1]
    # Rank the negatives before everything else.
    background_loss = background_loss.masked_fill(~negative, -torch.inf)
    rank = background_loss.argsort(dim=1, descending=True).argsort(dim=1)
    wanted = negatives_per_positive * positive.sum(dim=1, keepdim=True)
    return (rank < wanted) & negative


def classification_loss(logits: Tensor, labels: Tensor, negatives_per_positive: int) -> Tensor:
    """Softmax cross entropy over the positives and the hardest negatives of each image.

    Args:
        logits: (N, A, C + 1), background last.
        labels: (N, A) in 0..C, C being background; -1 is ignored.
        negatives_per_positive: see :func:`hardest_negatives`.
    """
    background = logits.shape[-1] - 1
    positive = (labels >= 0) & (labels < background)
    with torch.no_grad():
        hard = hardest_negatives(logits, positive, labels == background, negatives_per_positive)
    chosen = positive | hard
    return F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")


def box_regression_loss(deltas: Tensor, gt_deltas: Tensor) -> Tensor:
    """Smooth L1 (beta 1) between two (P, 4) tensors."""
    return F.smooth_l1_loss(deltas, gt_deltas, reduction="sum")


def downsample_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Ground-truth masks on a coarser grid: bilinear without antialiasing, then > 0.5.

    Args:
        masks: (G, H, W) bool.
        size: (height, width) of the grid.

    Returns:
        (G, height, width) bool.
    """
    small = masks.new_empty((len(masks), *size), dtype=torch.bool)
    chunk = max(1, _MAX_FLOAT_PIXELS // (masks.shape[1] * masks.shape[2]))
    for part, out in zip(masks.split(chunk), small.split(chunk)):
        soft = F.interpolate(part[:, None].float(), size=size, mode="bilinear", align_corners=False)
        torch.gt(soft[:, 0], 0.5, out=out)
    return small


def mask_loss(masks: Tensor, gt_masks: Tensor, gt_boxes: Tensor) -> Tensor:
    """Pixelwise binary cross entropy, summed over the grid and divided by the area of the
    ground-truth box.

    Args:
        masks: (P, h, w) in 0..1, zero outside that box.
        gt_masks: (P, h, w) bool, the target of each.
        gt_boxes: (P, 4) XYXY, in cells of the grid.

    Returns:
        scalar, NaN if a mask has one.
    """
    if (
        masks.sum().isnan()
    ):  # which binary_cross_entropy does not take: on a GPU it ends the process
        return masks.sum()
    # Not from logits: where the crop or the rounding of the sigmoid makes the prediction 0 or 1, a
    # wrong cell costs 100, where the logarithm is clamped, as it does in the authors' code.
    cell_losses = F.binary_cross_entropy(masks, gt_masks.to(masks.dtype), reduction="none")
    return (cell_losses.sum(dim=(1, 2)) / Boxes(gt_boxes).area()).sum()


def mask_iou(masks: Tensor, gt_masks: Tensor) -> Tensor:
    """IoU of each mask with its target.

    Args:
        masks, gt_masks: (P, h, w) bool.

    Returns:
        (P,), 0 for two empty masks.
    """
    intersection = (masks & gt_masks).sum(dim=(1, 2))
    union = (masks | gt_masks).sum(dim=(1, 2))
    return intersection / union.clamp(min=1)


def mask_iou_loss(ious: Tensor, gt_ious: Tensor) -> Tensor:
    """Smooth L1 (beta 1) between two (P,) tensors."""
    return F.smooth_l1_loss(ious, gt_ious, reduction="sum")


def semantic_segmentation_loss(logits: Tensor, gt_masks: Tensor, gt_classes: Tensor) -> Tensor:
    """Binary cross entropy of one image against the union of its masks in each class.

    Args:
        logits: (C, h, w).
        gt_masks: (G, h, w) bool.
        gt_classes: (G,) in 0..C-1.

    Returns:
        scalar, the sum over classes of the mean over the grid.
    """
    target = torch.zeros_like(logits)
    target.index_put_((gt_classes,), gt_masks.to(logits.dtype), accumulate=True)
    target.clamp_(max=1)
    num_cells = logits.shape[1] * logits.shape[2]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / num_cells
