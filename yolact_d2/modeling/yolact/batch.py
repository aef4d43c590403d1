"""The detections of a batch as tensors, whose shapes do not depend on what is found."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..masks import resize_masks
from .masks import clip_boxes, scale_boxes, soft_masks
from .nms import fast_nms_of_batch


class BatchDetections(NamedTuple):
    """D detections of each of N images, the best first. Those that an image lacks come last."""

    boxes: Tensor
    """(N, D, 4) XYXY, relative to the image, not clipped."""
    scores: Tensor
    """(N, D), -1 where there is no detection."""
    classes: Tensor
    """(N, D)"""
    coefficients: Tensor
    """(N, D, k) of the masks."""


class BatchMasks(NamedTuple):
    masks: Tensor
    """(N, D, h, w) in 0..1, zero outside the boxes."""
    ious: Tensor | None
    """(N, D), predicted by YOLACT++."""


def choose_batch(
    boxes: Tensor, scores: Tensor, coefficients: Tensor, **limits: Any
) -> BatchDetections:
    """
    Args:
        boxes, scores, coefficients: of all anchors, see :meth:`YOLACT.decode_batch`.
        limits: of :func:`fast_nms_of_batch`.
    """
    indices, classes, scores = fast_nms_of_batch(boxes, scores, **limits)
    boxes, coefficients = (
        x.gather(1, indices[..., None].expand(-1, -1, x.shape[2])) for x in (boxes, coefficients)
    )
    return BatchDetections(boxes, scores, classes, coefficients)


def batch_masks(
    found: BatchDetections, prototypes: Tensor, mask_iou_head: nn.Module | None
) -> BatchMasks:
    """
    Args:
        prototypes: (N, k, h, w).
        mask_iou_head: see :class:`MaskIoUHead`.
    """
    grid_boxes = scale_boxes(found.boxes, prototypes.shape[2:])
    masks = soft_masks(prototypes, found.coefficients, grid_boxes)
    if mask_iou_head is None:
        return BatchMasks(masks, None)
    ious = mask_iou_head(masks.flatten(0, 1), found.classes.flatten())
    return BatchMasks(masks, ious.view_as(found.scores))


def batch_instances(
    found: BatchDetections,
    masks: BatchMasks,
    sizes: Sequence[Any],
    score_thresh: float,
) -> list[Instances]:
    """The detections of each image.

    Nothing in them shares memory with the arguments, which a CUDA graph overwrites in its next run.

    Args:
        sizes: (height, width) of each result, in pixels.
        score_thresh: detections with a lower score are dropped.
    """
    is_found = found.scores >= max(score_thresh, 0)
    kept: list[Any]
    scores = found.scores.clone()
    if torch.compiler.is_exporting():  # the number of detections is fixed
        scores = scores.masked_fill(~is_found, 0)
        kept = [slice(None)] * len(sizes)
    elif torch.jit.is_tracing():
        kept = [x.nonzero().squeeze(1) for x in is_found.unbind()]
    else:
        kept = [slice(number) for number in is_found.sum(dim=1).tolist()]  # waits for a GPU
    boxes, classes = clip_boxes(found.boxes), found.classes.clone()
    mask_scores = None if masks.ious is None else scores * masks.ious
    results = []
    for i, (size, index) in enumerate(zip(sizes, kept)):
        result = Instances(size)
        result.pred_boxes = Boxes(boxes[i, index])
        result.pred_boxes.scale(size[1], size[0])
        result.scores = scores[i, index]
        result.pred_classes = classes[i, index]
        if mask_scores is not None:
            result.mask_scores = mask_scores[i, index]
        result.pred_masks = resize_masks(masks.masks[i, index], size)
        results.append(result)
    return results
