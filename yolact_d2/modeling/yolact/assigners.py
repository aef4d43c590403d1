"""Which anchors learn which object: pure functions of the tensors of one image.

All of them take the same arguments, of which a method may ignore some.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .matcher import BACKGROUND, FOREGROUND, in_chunks, match_anchors


class ImageAnchors(NamedTuple):
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
    """What the anchors of one image learn."""

    matches: Tensor
    """(A,) index of the object of each anchor."""
    labels: Tensor
    """(A,) FOREGROUND, BACKGROUND or IGNORE."""
    quality: Tensor | None = None
    """(A,) in 0..1, how well foreground anchors fit their objects, if the method says so."""


def assign_by_iou(image: ImageAnchors, iou_thresholds: Sequence[float]) -> Assignment:
    """The papers' rule, see :func:`match_anchors`."""
    anchors = Boxes.cat(list(image.anchors))
    return Assignment(*match_anchors(anchors, image.gt_boxes, iou_thresholds))


def assign_atss(image: ImageAnchors, topk: int = 9) -> Assignment:
    """Adaptive training sample selection (arXiv 1912.02424, algorithm 1).

    The candidates of an object are the `topk` anchors of each level whose centres are nearest to
    that of the object. Those learn it whose IoU is at least mean + standard deviation of the
    candidates' IoUs, if :func:`_may_learn` lets them.
    """
    if len(image.gt_boxes) == 0:
        return _background(image.boxes)
    nearest, first = [], 0
    for level in image.anchors:
        distances = _squared_distances(image.gt_boxes, level)
        nearest.append(first + distances.topk(min(topk, len(level)), largest=False).indices)
        first += len(level)
    candidates = torch.cat(nearest, dim=1)
    anchors = Boxes.cat(list(image.anchors))
    iou = in_chunks(pairwise_iou, image.gt_boxes, anchors)
    candidate_iou = iou.gather(1, candidates)
    threshold = candidate_iou.mean(dim=1) + candidate_iou.std(dim=1)
    is_good = (candidate_iou >= threshold[:, None]) & (candidate_iou > 0)
    chosen = torch.zeros_like(iou, dtype=torch.bool).scatter_(1, candidates, is_good)
    return _with_largest_iou(chosen & _may_learn(anchors, image.gt_boxes), iou)


def assign_task_aligned(
    image: ImageAnchors, topk: int = 10, alpha: float = 0.5, beta: float = 6.0
) -> Assignment:
    """Task-aligned assignment (TOOD, arXiv 2108.07755, section 3.2).

    Of the anchors that :func:`_may_learn` an object, the `topk` with the largest alignment learn
    it: score^`alpha` x IoU^`beta` of the predicted box. Their quality is the alignment, scaled such
    that the largest of an object is its largest IoU. The defaults are YOLOv8's; those of the
    article are 13, 1 and 6.
    """
    if len(image.gt_boxes) == 0:
        return _background(image.boxes)._replace(quality=torch.zeros_like(image.boxes[:, 0]))
    iou = in_chunks(pairwise_iou, image.gt_boxes, Boxes(image.boxes))
    alignment = image.scores[:, image.gt_classes].t() ** alpha * iou**beta
    may_learn = _may_learn(Boxes.cat(list(image.anchors)), image.gt_boxes)
    best = alignment.masked_fill(~may_learn, -1).topk(min(topk, len(image.boxes)), dim=1)
    chosen = torch.zeros_like(may_learn).scatter_(1, best.indices, best.values >= 0)
    assignment = _with_largest_iou(chosen, iou)

    objects = torch.arange(len(iou), device=iou.device)
    is_own = (assignment.labels == FOREGROUND) & (assignment.matches == objects[:, None])
    alignment, iou = alignment * is_own, iou * is_own
    scale = iou.amax(dim=1) / alignment.amax(dim=1).clamp(min=torch.finfo(iou.dtype).tiny)
    return assignment._replace(quality=(alignment * scale[:, None]).amax(dim=0))


def _background(boxes: Tensor) -> Assignment:
    matches = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return Assignment(matches, torch.full_like(matches, BACKGROUND, dtype=torch.int8))


def _may_learn(anchors: Boxes, gt_boxes: Boxes) -> Tensor:
    """(G, A) bool: the anchors whose centre is inside the box of an object, and the anchor whose
    centre is nearest to its own: an object may be smaller than the gap between anchors."""
    x, y = anchors.get_centers().unbind(dim=1)
    x1, y1, x2, y2 = gt_boxes.tensor[:, :, None].unbind(dim=1)
    is_inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    nearest = _squared_distances(gt_boxes, anchors).argmin(dim=1)
    return is_inside.scatter_(1, nearest[:, None], True)


def _squared_distances(gt_boxes: Boxes, anchors: Boxes) -> Tensor:
    """(G, A) of the centres. (On a GPU `torch.cdist` may be too coarse to rank them.)"""
    x, y = anchors.get_centers().unbind(dim=1)
    gt_x, gt_y = gt_boxes.get_centers()[:, :, None].unbind(dim=1)
    return (x - gt_x) ** 2 + (y - gt_y) ** 2


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
