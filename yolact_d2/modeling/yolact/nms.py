"""Non-maximum suppression: Fast NMS and variants, registered by name."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.utils.registry import Registry
from torch import Tensor
from torchvision import ops

from ..registry import get_registered
from ..tracing import is_eager_cpu, is_tracing, smaller

# Number of IoUs that are computed at once, to limit memory. On a CPU they should fit the cache.
_MAX_IOUS = 2**26
_MAX_CPU_IOUS = 160_000
# Number of pairs that fast_nms tries first on a CPU.
_BEST_PAIRS = 400

NMS_REGISTRY = Registry("NMS")
NMS_REGISTRY.__doc__ = """
Functions that choose the detections of one image.

Each is called with `boxes` (N, 4) XYXY, `scores` (N, C) and the keyword arguments `score_thresh`,
`iou_thresh`, `topk` (number of best boxes of a class to consider) and `max_detections`, and
returns :class:`Detections`. A function may ignore arguments that its method does not have.
"""


class Detections(NamedTuple):
    """The D chosen (box, class) pairs, in descending order of their scores."""

    indices: Tensor
    """(D,) indices of the boxes."""
    classes: Tensor
    """(D,)"""
    scores: Tensor
    """(D,)"""


def get_nms(name: str) -> Callable[..., Detections]:
    """The function that ``cfg.MODEL.YOLACT.NMS`` names."""
    return get_registered(NMS_REGISTRY, name, "MODEL.YOLACT.NMS")


def may_exceed(logits: Tensor, score_thresh: float) -> Tensor:
    """Boxes whose best class may have a probability above a threshold, without a softmax.

    The probability of a class is at most exp(its logit - the background's).

    Args:
        logits: (A, C + 1), the background last.
        score_thresh: above 0.

    Returns:
        (A,) bool, true for all boxes above the threshold; of a trained model for few others.
    """
    margin = 1e-3  # for rounding
    return logits[:, :-1].amax(dim=1) - logits[:, -1] > math.log(score_thresh) - margin


def batched_pairwise_iou(boxes: Tensor) -> Tensor:
    """IoU of all pairs of boxes in each of many lists.

    Args:
        boxes: (..., N, 4) XYXY; leading dimensions are independent lists.

    Returns:
        (..., N, N), 0 for two boxes without area.
    """
    return _iou(boxes[..., :, None, :], boxes[..., None, :, :])


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of boxes (..., 4) that are broadcast, 0 for two boxes without area."""
    # In place, because these are the largest tensors of inference.
    intersection = _overlap(a[..., ::2], b[..., ::2]).mul_(_overlap(a[..., 1::2], b[..., 1::2]))
    union = (_area(a) + _area(b)).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Lengths (...) of the intersections of intervals (..., 2)."""
    start = torch.maximum(a[..., 0], b[..., 0])
    return torch.minimum(a[..., 1], b[..., 1]).sub_(start).clamp_(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def fast_nms_keep(boxes: Tensor, iou_thresh: float) -> Tensor:
    """Boxes that Fast NMS keeps (arXiv 1904.02689, section 4.2).

    A box is kept if its IoU with every better box is at most `iou_thresh`. Unlike in ordinary NMS,
    suppressed boxes suppress others too, so all boxes are decided at once.

    Args:
        boxes: (..., N, 4) XYXY, best first; leading dimensions are independent lists.

    Returns:
        (..., N) bool.
    """
    iou_with_better = batched_pairwise_iou(boxes).triu_(diagonal=1)
    return ~(iou_with_better > iou_thresh).any(dim=-2)


def fast_nms_of_batch(
    boxes: Tensor, scores: Tensor, *, iou_thresh: float, topk: int, max_detections: int
) -> Detections:
    """Fast NMS within each class, for N images with as many boxes: all shapes are known beforehand.

    Args:
        boxes: (N, A, 4) XYXY.
        scores: (N, A, C). Pairs with a score below 0 suppress nothing.

    Returns:
        :class:`Detections` of shape (N, D) with D = `max_detections`, or the number of all pairs.
        Those that an image lacks come last and have the score -1.
    """
    num_classes = scores.shape[2]
    class_scores, order = _best(scores.transpose(1, 2), smaller(topk, boxes.shape[1]))
    ranks = order.shape[2]
    sorted_boxes = boxes.gather(1, order.flatten(1)[..., None].expand(-1, -1, 4))
    sorted_boxes = sorted_boxes.unflatten(1, (num_classes, ranks))
    # Some classes at a time; an exported graph has all of them in one node.
    at_once = num_classes
    if not is_tracing():
        limit = _MAX_CPU_IOUS if is_eager_cpu(boxes) else _MAX_IOUS
        at_once = max(1, limit // max(1, len(boxes) * ranks**2))
    parts = sorted_boxes.split(at_once, dim=1)
    keep = torch.cat([fast_nms_keep(part, iou_thresh) for part in parts], dim=1)

    ranked = class_scores.masked_fill(~keep, -1).flatten(1)
    best, flat = _best(ranked, smaller(max_detections, ranked.shape[1]))
    return Detections(order.flatten(1).gather(1, flat), flat // ranks, best)


def _best(scores: Tensor, num: Any) -> tuple[Tensor, Tensor]:
    """The `num` best scores of the last dimension in descending order, and their indices.

    On a CPU, equal scores are in the order of their indices. Elsewhere `topk` decides.
    """
    if not is_eager_cpu(scores):
        return scores.topk(num, dim=-1)
    best, order = scores.sort(dim=-1, descending=True, stable=True)
    return best[..., :num], order[..., :num]


def _fast_nms_of_best_pairs(
    boxes: Tensor,
    scores: Tensor,
    num_pairs: int,
    *,
    iou_thresh: float,
    topk: int,
    max_detections: int,
) -> Detections | None:
    """What :func:`fast_nms` returns, from the `num_pairs` best (box, class) pairs alone.

    This is exact, because only better pairs suppress a pair.

    Args:
        boxes: (A, 4) XYXY.
        scores: (A, C).
        num_pairs: at most A * C.

    Returns:
        None if other pairs may be missing among the detections.
    """
    # They belong to at most as many boxes: those with the highest best scores.
    best_of_box = scores.amax(dim=1)
    lowest_best = best_of_box.topk(min(num_pairs, len(boxes)), sorted=False).values.amin()
    rows = (best_of_box >= lowest_best).nonzero().squeeze(1)
    class_scores = scores[rows].t()
    lowest = class_scores.flatten().topk(num_pairs, sorted=False).values.amin().clamp(min=0)
    # With all pairs that are equal to the last one. By class, as in fast_nms_of_batch.
    classes, indices = (class_scores >= lowest).nonzero(as_tuple=True)
    if len(indices) > 2 * num_pairs:
        return None
    best, order = _best(class_scores[classes, indices], len(indices))
    indices, classes = rows[indices[order]], classes[order]
    is_better = (classes[:, None] == classes).triu_(diagonal=1)  # (better, other) of a class
    keep = is_better.sum(dim=0) < topk
    better, other = is_better.nonzero(as_tuple=True)
    ious = _iou(boxes[indices[better]], boxes[indices[other]])
    keep[other[ious > iou_thresh]] = False
    keep = keep.nonzero().squeeze(1)[:max_detections]
    if len(keep) < max_detections and lowest > 0:
        return None
    return Detections(indices[keep], classes[keep], best[keep])


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
    """Fast NMS within each class.

    Ignores `score_thresh`: as in the authors' code, a box may be a detection of any class with any
    score if its best class score exceeds the threshold (worth 0.2 mAP according to them).

    On a CPU, equal scores are in the order of their classes, then of their boxes.
    """
    limits: dict[str, Any] = dict(iou_thresh=iou_thresh, topk=topk, max_detections=max_detections)
    if is_eager_cpu(boxes):
        num_pairs = _BEST_PAIRS
        # As long as this compares fewer pairs than all classes do.
        while num_pairs**2 < scores.shape[1] * min(topk, len(boxes)) ** 2:
            detections = _fast_nms_of_best_pairs(boxes, scores, num_pairs, **limits)
            if detections is not None:
                return detections
            num_pairs *= 2
    indices, classes, scores = fast_nms_of_batch(boxes[None], scores[None], **limits)
    found = (scores[0] >= 0).nonzero().squeeze(1)
    return Detections(indices[0, found], classes[0, found], scores[0, found])


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
    """Fast NMS over all classes together, each box with its best class only.

    Ignores `score_thresh`, which the best class of every box exceeds.
    """
    best_scores, best_classes = scores.max(dim=1)
    ranked, order = best_scores.topk(min(topk, len(boxes)))
    keep = fast_nms_keep(boxes[order], iou_thresh).nonzero().squeeze(1)[:max_detections]
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
    """Ordinary NMS within each class, on (box, class) pairs with scores above `score_thresh`.

    Ignores `topk`: ordinary NMS considers all of them.
    """
    indices, classes = (scores > score_thresh).nonzero(as_tuple=True)
    pair_scores = scores[indices, classes]
    # torchvision shifts the boxes of each class by the largest coordinate. This needs coordinates
    # that are not negative, and more digits than float32 has if a box is far away.
    precise = torch.float32 if boxes.device.type == "mps" else torch.float64  # MPS has no float64
    candidates = boxes[indices].to(precise)
    if len(candidates) > 0:
        candidates = candidates - candidates.min()
    keep = ops.batched_nms(candidates, pair_scores.to(precise), classes, iou_thresh)
    keep = keep[:max_detections]
    return Detections(indices[keep], classes[keep], pair_scores[keep])
