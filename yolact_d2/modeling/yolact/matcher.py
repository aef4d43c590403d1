"""Matching of anchors and ground truth: pure functions of boxes."""

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

# Labels of anchors.
IGNORE, BACKGROUND, FOREGROUND = -1, 0, 1

# Largest number of pairs of boxes that are compared at once, to limit memory.
_MAX_PAIRS = 2**22


def match_one_to_one(iou: Tensor) -> Tensor:
    """Greedy matching that gives every object an anchor of its own, largest IoU first.

    Equivalent to a loop that takes the pair with the largest IoU (the first in row-major order of
    equal ones) and removes its row and column. A pair that is the maximum of both its row and its
    column is always taken by that loop, so each round here takes all such pairs at once; a few
    rounds are enough.

    Args:
        iou: (G, A) of objects and anchors. Overwritten to save memory.

    Returns:
        (G,) anchor of each object; -1 for the objects left over if G > A.
    """
    num_gt, num_anchors = iou.shape
    matched = torch.full((num_gt,), -1, dtype=torch.int64, device=iou.device)
    rows = torch.arange(num_gt, device=iou.device)
    while (matched >= 0).sum() < min(num_gt, num_anchors):
        anchor = iou.argmax(dim=1)
        best_gt = iou[:, anchor].argmax(dim=0)
        mutual = ((best_gt == rows) & (matched < 0)).nonzero().squeeze(1)
        matched[mutual] = anchor[mutual]
        iou[mutual] = -1
        iou[:, anchor[mutual]] = -1
    return matched


def match_anchors(
    anchors: Boxes, gt_boxes: Boxes, iou_thresholds: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Match the anchors of one image with its objects (the authors' ``match``; for its crowd
    regions see :func:`ignore_crowds`).

    Args:
        anchors: A anchors.
        gt_boxes: boxes of G objects, without crowd regions.
        iou_thresholds: (low, high). Anchors whose largest IoU is at least `high` are foreground,
            those below `low` background, those between ignored. In addition, each object gets one
            anchor of its own, see :func:`match_one_to_one`.

    Returns:
        matches: (A,) index of the object of each anchor, 0 if the image has no object.
        labels: (A,) FOREGROUND, BACKGROUND or IGNORE.
    """
    low, high = iou_thresholds
    device = anchors.device
    labels = torch.full((len(anchors),), BACKGROUND, dtype=torch.int8, device=device)
    matches = torch.zeros(len(anchors), dtype=torch.int64, device=device)

    if len(gt_boxes) > 0:
        iou = in_chunks(pairwise_iou, gt_boxes, anchors)
        best_iou, matches = iou.max(dim=0)
        labels[best_iou >= low] = IGNORE
        labels[best_iou >= high] = FOREGROUND

        own_anchor = match_one_to_one(iou)
        has_anchor = (own_anchor >= 0).nonzero().squeeze(1)
        labels[own_anchor[has_anchor]] = FOREGROUND
        matches[own_anchor[has_anchor]] = has_anchor

    return matches, labels


def ignore_crowds(
    labels: Tensor, anchors: Boxes, crowd_boxes: Boxes, crowd_overlap_thresh: float
) -> None:
    """Label anchors in crowd regions IGNORE, in place, unless they are FOREGROUND.

    Args:
        labels: (A,), as :func:`match_anchors` returns them.
        anchors: A anchors.
        crowd_boxes: boxes of crowd regions.
        crowd_overlap_thresh: anchors are ignored if more than this fraction of their area is inside
            a crowd region.
    """
    if len(crowd_boxes) > 0:
        overlap = in_chunks(pairwise_ioa, crowd_boxes, anchors).amax(dim=0)
        labels[(overlap > crowd_overlap_thresh) & (labels != FOREGROUND)] = IGNORE


def in_chunks(pairwise: Callable[[Boxes, Boxes], Tensor], boxes: Boxes, anchors: Boxes) -> Tensor:
    """`pairwise(boxes, anchors)`, but for a few boxes at a time: Detectron2's pairwise functions
    need six times the memory of their result."""
    result = boxes.tensor.new_empty((len(boxes), len(anchors)))
    chunk = max(1, _MAX_PAIRS // max(1, len(anchors)))
    for part, out in zip(boxes.tensor.split(chunk), result.split(chunk)):
        out.copy_(pairwise(Boxes(part), anchors))
    return result
