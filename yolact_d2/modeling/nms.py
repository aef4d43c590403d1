"""Non-maximum suppression: Fast NMS and its variants, chosen by name from a registry."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.utils.registry import Registry
from torch import Tensor
from torchvision import ops

from .registry import lookup

# Lists of boxes that are looked at together on a CPU, so that what they need fits its cache.
_MAX_CPU_LISTS = 4

NMS_REGISTRY = Registry("NMS")
NMS_REGISTRY.__doc__ = """
Functions that choose the detections of one image.

Each is called with `boxes` (N, 4) XYXY, `scores` (N, C) and the keyword arguments
`score_thresh`, `iou_thresh`, `topk` (best boxes of a class that are looked at) and
`max_detections`; each returns :class:`Detections`, best first. A function uses those of the
arguments that its method has.
"""


class Detections(NamedTuple):
    """The chosen (box, class) pairs, best first."""

    indices: Tensor
    """(D,) rows of the boxes that were given."""
    classes: Tensor
    """(D,)"""
    scores: Tensor
    """(D,)"""


def get_nms(name: str) -> Callable[..., Detections]:
    """The function that ``cfg.MODEL.YOLACT.NMS`` names."""
    return lookup(NMS_REGISTRY, name, "MODEL.YOLACT.NMS")


def pairwise_iou(boxes: Tensor) -> Tensor:
    """IoU of every box with every other of its list, for many lists at once.

    Args:
        boxes: (..., N, 4) XYXY; leading dimensions are independent lists.

    Returns:
        (..., N, N), 0 for two boxes without area.
    """
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    # In place: these are the large tensors of an image.
    intersection = _pairwise_overlap(x1, x2).mul_(_pairwise_overlap(y1, y2))
    area = (x2 - x1) * (y2 - y1)
    union = (area[..., :, None] + area[..., None, :]).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _pairwise_overlap(first: Tensor, last: Tensor) -> Tensor:
    """Length in common of every two of (..., N) intervals: (..., N, N)."""
    larger_first = torch.maximum(first[..., :, None], first[..., None, :])
    smaller_last = torch.minimum(last[..., :, None], last[..., None, :])
    return smaller_last.sub_(larger_first).clamp_(min=0)


def not_suppressed(boxes: Tensor, iou_thresh: float) -> Tensor:
    """The rule of Fast NMS (arXiv 1904.02689, section 4.2).

    A box survives if its IoU with every better box is at most `iou_thresh`. Boxes that are
    themselves suppressed still suppress, so no box waits for the verdict on another.

    Args:
        boxes: (..., N, 4) XYXY, best first; leading dimensions are independent lists.

    Returns:
        (..., N) bool.
    """
    if boxes.dim() > 2 and len(boxes) > _MAX_CPU_LISTS and boxes.device.type == "cpu":
        parts = boxes.split(_MAX_CPU_LISTS)
        return torch.cat([not_suppressed(part, iou_thresh) for part in parts])
    iou_with_better = pairwise_iou(boxes).triu_(diagonal=1)
    return ~(iou_with_better > iou_thresh).any(dim=-2)


@NMS_REGISTRY.register()
def fast_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_thresh: float,
    iou_thresh: float,
    topk: int,
    max_detections: int,
) -> Detections:
    """Fast NMS in each class by itself.

    `score_thresh` is not used: as in the authors' code, a box that was let in for one class may
    be a detection of another with a lower score (worth 0.2 mAP according to them).
    """
    num_boxes, num_classes = scores.shape
    class_scores, order = scores.t().topk(min(topk, num_boxes), dim=1)
    keep = not_suppressed(boxes[order], iou_thresh)

    ranked = class_scores.masked_fill(~keep, -1).flatten()
    best, flat = ranked.topk(min(max_detections, ranked.numel()))
    flat = flat[best >= 0]
    classes = torch.arange(num_classes, device=scores.device)[:, None].expand_as(order)
    return Detections(order.flatten()[flat], classes.flatten()[flat], ranked[flat])


@NMS_REGISTRY.register()
def cross_class_fast_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_thresh: float,
    iou_thresh: float,
    topk: int,
    max_detections: int,
) -> Detections:
    """Fast NMS among all classes together, each box standing for its best class.

    `score_thresh` is not used: every box was let in for its best class.
    """
    best_scores, best_classes = scores.max(dim=1)
    ranked, order = best_scores.topk(min(topk, len(boxes)))
    keep = not_suppressed(boxes[order], iou_thresh).nonzero().squeeze(1)[:max_detections]
    indices = order[keep]
    return Detections(indices, best_classes[indices], ranked[keep])


@NMS_REGISTRY.register()
def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_thresh: float,
    iou_thresh: float,
    topk: int,
    max_detections: int,
) -> Detections:
    """Ordinary NMS in each class, on the (box, class) pairs above `score_thresh`.

    `topk` is not used: ordinary NMS looks at all of them.
    """
    indices, classes = (scores > score_thresh).nonzero(as_tuple=True)
    pair_scores = scores[indices, classes]
    # In double: next to a box far away, moving the classes apart leaves float32 no digits. (Apple's
    # GPUs have none.)
    precise = torch.float32 if boxes.device.type == "mps" else torch.float64
    candidates = boxes[indices].to(precise)
    if len(candidates) > 0:
        # torchvision moves the classes apart by the largest coordinate; none may be negative.
        candidates = candidates - candidates.min()
    keep = ops.batched_nms(candidates, pair_scores.to(precise), classes, iou_thresh)
    keep = keep[:max_detections]
    return Detections(indices[keep], classes[keep], pair_scores[keep])
