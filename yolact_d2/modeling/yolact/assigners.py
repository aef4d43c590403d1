"""Which anchors learn which object: pure functions of the tensors of one image.

All of them take the same arguments, of which a method may ignore some.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .matcher import BACKGROUND, FOREGROUND, in_chunks, match_anchors


class Candidates(NamedTuple):
    """The anchors of one image, what the network predicts for them, and the objects."""

    anchors: Sequence[Boxes]
    """A anchors, level by level."""
    boxes: Tensor
    """(A, 4) XYXY predicted boxes, in the units of the anchors."""
    scores: Tensor
    """(A, C) predicted probabilities of the classes."""
    gt_boxes: Boxes
    """Boxes of G objects, in the units of the anchors."""
    gt_classes: Tensor
    """(G,)"""


class Assignment(NamedTuple):
    matches: Tensor
    """(A,) index of the object of each anchor."""
    labels: Tensor
    """(A,) FOREGROUND, BACKGROUND or IGNORE."""
    quality: Tensor | None = None
    """(A,) in 0..1, how much the anchors that are foreground are worth, if the method says so."""


def assign_by_iou(found: Candidates, iou_thresholds: Sequence[float]) -> Assignment:
    """The papers' rule, see :func:`match_anchors`."""
    anchors = Boxes.cat(list(found.anchors))
    return Assignment(
        *match_anchors(anchors, found.gt_boxes, found.gt_boxes[:0], iou_thresholds, 1.0)
    )


def assign_atss(found: Candidates, topk: int = 9) -> Assignment:
    """Adaptive training sample selection (arXiv 1912.02424, algorithm 1).

    The `topk` anchors of each level whose centres are nearest to that of the object are its
    candidates. Those learn it whose IoU is at least mean + standard deviation of the candidates'
    IoUs and whose centre is inside the box.
    """
    if len(found.gt_boxes) == 0:
        return _background(len(found.boxes), found.boxes.device)
    centers = found.gt_boxes.get_centers()
    nearest, first = [], 0
    for level in found.anchors:
        distances = torch.cdist(centers, level.get_centers())
        nearest.append(first + distances.topk(min(topk, len(level)), largest=False).indices)
        first += len(level)
    candidates = torch.cat(nearest, dim=1)
    anchors = Boxes.cat(list(found.anchors))
    iou = in_chunks(pairwise_iou, found.gt_boxes, anchors)
    candidate_iou = iou.gather(1, candidates)
    threshold = candidate_iou.mean(dim=1) + candidate_iou.std(dim=1)
    is_good = (candidate_iou >= threshold[:, None]) & (candidate_iou > 0)
    chosen = torch.zeros_like(iou, dtype=torch.bool).scatter_(1, candidates, is_good)
    return _with_largest_iou(chosen & _centers_inside(anchors, found.gt_boxes), iou)


def assign_task_aligned(
    found: Candidates, topk: int = 10, alpha: float = 0.5, beta: float = 6.0
) -> Assignment:
    """Task-aligned assignment (TOOD, arXiv 2108.07755, section 3.2).

    The `topk` anchors with the largest alignment = score^`alpha` x IoU^`beta` of the predicted box
    learn an object, if their centre is inside its box or if they are the nearest anchor. Their
    quality is the alignment, scaled such that its maximum for each object is the largest IoU.
    """
    if len(found.gt_boxes) == 0:
        none = _background(len(found.boxes), found.boxes.device)
        return none._replace(quality=torch.zeros_like(found.boxes[:, 0]))
    iou = in_chunks(pairwise_iou, found.gt_boxes, Boxes(found.boxes))
    alignment = found.scores[:, found.gt_classes].t() ** alpha * iou**beta
    is_inside = _centers_inside(Boxes.cat(list(found.anchors)), found.gt_boxes)
    best = alignment.masked_fill(~is_inside, -1).topk(min(topk, len(found.boxes)), dim=1)
    chosen = torch.zeros_like(is_inside).scatter_(1, best.indices, best.values >= 0)
    assignment = _with_largest_iou(chosen, iou)

    objects = torch.arange(len(iou), device=iou.device)
    is_own = (assignment.labels == FOREGROUND) & (assignment.matches == objects[:, None])
    alignment, iou = alignment * is_own, iou * is_own
    scale = iou.amax(dim=1) / alignment.amax(dim=1).clamp(min=torch.finfo(iou.dtype).tiny)
    return assignment._replace(quality=(alignment * scale[:, None]).amax(dim=0))


def _background(num_anchors: int, device: torch.device) -> Assignment:
    matches = torch.zeros(num_anchors, dtype=torch.int64, device=device)
    return Assignment(matches, torch.full_like(matches, BACKGROUND, dtype=torch.int8))


def _centers_inside(anchors: Boxes, gt_boxes: Boxes) -> Tensor:
    """(G, A) bool: which anchors have their centre inside a box, or nearer to that of the box than
    all others have: an object may be smaller than the distance between anchors."""
    x, y = anchors.get_centers().unbind(dim=1)
    x1, y1, x2, y2 = gt_boxes.tensor[:, :, None].unbind(dim=1)
    is_inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    nearest = ((x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2).argmin(dim=1)
    return is_inside.scatter_(1, nearest[:, None], True)


def _with_largest_iou(chosen: Tensor, iou: Tensor) -> Assignment:
    """Give each anchor the object with the largest IoU among those that chose it.

    Args:
        chosen: (G, A) bool.
        iou: (G, A)
    """
    largest, matches = iou.masked_fill(~chosen, -1).max(dim=0)
    labels = torch.full_like(matches, BACKGROUND, dtype=torch.int8)
    labels[largest >= 0] = FOREGROUND
    return Assignment(matches, labels)
