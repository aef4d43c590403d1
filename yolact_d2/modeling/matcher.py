"""Which anchor is responsible for which ground truth: pure functions of boxes."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

# What an anchor is for its image.
IGNORE, BACKGROUND, FOREGROUND = -1, 0, 1

# Bounds the memory of an overlap: pairs of a box and an anchor that are looked at together.
_MAX_PAIRS = 2**22


def claim_best_anchors(iou: Tensor) -> Tensor:
    """Give every ground truth one anchor of its own, the largest IoU first.

    Equal to taking, again and again, the (ground truth, anchor) pair with the largest IoU among
    those not taken, the first in row-major order on a tie. A pair that is the best of both its
    row and its column will be taken whatever happens to the others, so all such pairs are taken
    at once; a few rounds do instead of one for each ground truth.

    Args:
        iou: (G, A) of ground truths against anchors. It is overwritten: of many objects it is
            large.

    Returns:
        (G,) the anchor of each ground truth; -1 for those left over when G > A.
    """
    num_gt, num_anchors = iou.shape
    claimed = torch.full((num_gt,), -1, dtype=torch.int64, device=iou.device)
    rows = torch.arange(num_gt, device=iou.device)
    while (claimed >= 0).sum() < min(num_gt, num_anchors):
        anchor = iou.argmax(dim=1)
        best_gt = iou[:, anchor].argmax(dim=0)
        mutual = ((best_gt == rows) & (claimed < 0)).nonzero().squeeze(1)
        claimed[mutual] = anchor[mutual]
        iou[mutual] = -1
        iou[:, anchor[mutual]] = -1
    return claimed


def iou_matrix(boxes: Boxes, anchors: Boxes) -> Tensor:
    """Detectron2's :func:`pairwise_iou`, some boxes at a time: it needs six times its result.

    Returns:
        (len(boxes), len(anchors))
    """
    iou = boxes.tensor.new_empty((len(boxes), len(anchors)))
    parts = _parts(boxes, len(anchors))
    for part, out in zip(parts, iou.split([len(part) for part in parts])):
        out.copy_(pairwise_iou(part, anchors))
    return iou


def largest_overlap(boxes: Boxes, anchors: Boxes) -> Tensor:
    """(len(anchors),) the largest part of the area of each that lies in one of the boxes."""
    parts = _parts(boxes, len(anchors))
    return torch.stack([pairwise_ioa(part, anchors).amax(dim=0) for part in parts]).amax(dim=0)


def _parts(boxes: Boxes, num_anchors: int) -> list[Boxes]:
    chunk = max(1, _MAX_PAIRS // max(1, num_anchors))
    return [Boxes(part) for part in boxes.tensor.split(chunk)]


def match_anchors(
    anchors: Boxes,
    gt_boxes: Boxes,
    crowd_boxes: Boxes,
    iou_thresholds: Sequence[float],
    crowd_overlap_thresh: float,
) -> tuple[Tensor, Tensor]:
    """Match the anchors of one image (the authors' ``match``).

    Args:
        anchors: A anchors.
        gt_boxes: G objects, crowd regions not among them.
        crowd_boxes: regions with uncounted objects.
        iou_thresholds: (low, high). An anchor is foreground if its best IoU is at least `high`,
            background below `low`, ignored between. Besides, each object claims one anchor.
        crowd_overlap_thresh: an anchor that is not foreground is ignored if more than this part
            of its own area lies in a crowd region.

    Returns:
        matches: (A,) index of the best object of each anchor, 0 where there is no object.
        labels: (A,) FOREGROUND, BACKGROUND or IGNORE.
    """
    low, high = iou_thresholds
    device = anchors.device
    labels = torch.full((len(anchors),), BACKGROUND, dtype=torch.int8, device=device)
    matches = torch.zeros(len(anchors), dtype=torch.int64, device=device)

    if len(gt_boxes) > 0:
        iou = iou_matrix(gt_boxes, anchors)
        best_iou, matches = iou.max(dim=0)
        labels[best_iou >= low] = IGNORE
        labels[best_iou >= high] = FOREGROUND

        claimed = claim_best_anchors(iou)
        owners = (claimed >= 0).nonzero().squeeze(1)
        labels[claimed[owners]] = FOREGROUND
        matches[claimed[owners]] = owners

    if len(crowd_boxes) > 0:
        overlap = largest_overlap(crowd_boxes, anchors)
        labels[(overlap > crowd_overlap_thresh) & (labels != FOREGROUND)] = IGNORE

    return matches, labels
