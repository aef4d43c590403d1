"""NMS and the mask stage by themselves, over the number of boxes and the size of the picture."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor

from ..modeling.masks import paste_masks, scale_boxes, soft_masks
from ..modeling.nms import get_nms
from .clock import device_clock
from .planted import CANDIDATES_PER_OBJECT, plant_candidates, random_boxes
from .timing import median, p95, ratio, seconds, take_turns

NMS_NAMES = ("fast_nms", "cross_class_fast_nms", "batched_nms")
NUM_CLASSES = 80
# YOLACT's defaults at S = 550, and Mask R-CNN's masks.
_NMS_ARGUMENTS = dict(score_thresh=0.05, iou_thresh=0.5, topk=200, max_detections=100)
_NUM_PROTOTYPES, _GRID = 32, 138
_ROI_MASK = 28


def yolact_masks(
    prototypes: Tensor, coefficients: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Tensor:
    """YOLACT's mask stage: (N, height, width) bool of prototypes (k, h, w), coefficients (N, k),
    boxes (N, 4) relative to the picture, and its size (height, width)."""
    cells = scale_boxes(boxes, prototypes.shape[1:])
    return paste_masks(soft_masks(prototypes, coefficients, cells), cells, size)


def nms_calls(number: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The NMS functions, on `number` candidates around a fifth as many objects."""
    candidates = plant_candidates(max(1, number // CANDIDATES_PER_OBJECT), number)
    classes = candidates.objects % NUM_CLASSES
    scores = torch.zeros(number, NUM_CLASSES)
    scores.scatter_(1, classes[:, None], candidates.scores[:, None])
    given = candidates.boxes.to(device), scores.to(device)
    return {name: partial(get_nms(name), *given, **_NMS_ARGUMENTS) for name in NMS_NAMES}


def mask_calls(
    number: int, size: tuple[int, int], device: torch.device
) -> dict[str, Callable[[], Any]]:
    """The mask stages of YOLACT and, from masks in boxes to the picture, of Mask R-CNN."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.as_tensor(random_boxes(number), dtype=torch.float32).to(device)
    prototypes = torch.rand(_NUM_PROTOTYPES, _GRID, _GRID, generator=generator).to(device)
    coefficients = torch.randn(number, _NUM_PROTOTYPES, generator=generator).to(device)
    roi_masks = torch.rand(number, _ROI_MASK, _ROI_MASK, generator=generator).to(device)
    pixels = scale_boxes(boxes, size)
    return {
        "yolact_masks": partial(yolact_masks, prototypes, coefficients, boxes, size),
        "paste_masks_in_image": partial(paste_masks_in_image, roi_masks, pixels, size),
    }


@torch.no_grad()
def compare(
    calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """Time functions in turn.

    Returns:
        for each its "name", "median" and "p95" seconds, and the "ratio" to the first.
    """
    now = device_clock(device)
    turns = [lambda _, call=call: seconds(call, now) for call in calls.values()]
    take_turns(turns, 2)  # not counted
    times = take_turns(turns, repeats)
    return [
        {"name": name, "median": median(t), "p95": p95(t), "ratio": ratio(t, times[0])}
        for name, t in zip(calls, times)
    ]


def benchmark_nms(
    numbers: Sequence[int], device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """What :func:`compare` gives for each number of boxes."""
    return [
        {"boxes": number, **row}
        for number in numbers
        for row in compare(nms_calls(number, device), device, repeats)
    ]


def benchmark_masks(
    numbers: Sequence[int], sizes: Sequence[tuple[int, int]], device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """What :func:`compare` gives for each size (height, width) and number of boxes."""
    return [
        {"size": f"{width}x{height}", "boxes": number, **row}
        for height, width in sizes
        for number in numbers
        for row in compare(mask_calls(number, (height, width), device), device, repeats)
    ]
