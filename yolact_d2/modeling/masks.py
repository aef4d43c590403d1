"""From prototypes and coefficients to the masks of a picture: pure functions of tensors."""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Bounds the memory of `resize_masks`: elements of one float chunk.
_MAX_RESIZED_ELEMENTS = 2**26


def assemble_masks(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Linear combinations of the prototypes (arXiv 1904.02689, equation 1, before the sigmoid).

    Args:
        prototypes: (k, h, w).
        coefficients: (N, k).

    Returns:
        (N, h, w) mask logits.
    """
    return (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Cells of a grid that belong to each box.

    As in the authors' ``crop``, a cell counts if x1 - 1 <= column < x2 + 1, likewise for rows:
    the box and a margin of one cell.

    Args:
        boxes: (N, 4) XYXY, in cells of the grid.
        height, width: of the grid.

    Returns:
        (N, height, width) bool.
    """
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    columns = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    in_columns = (columns >= x1 - 1) & (columns < x2 + 1)
    in_rows = (rows >= y1 - 1) & (rows < y2 + 1)
    return in_rows[:, :, None] & in_columns[:, None, :]


def soft_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """Masks before they are thresholded, cropped to their boxes.

    Args:
        prototypes: (k, h, w).
        coefficients: (N, k).
        boxes: (N, 4) XYXY, in cells of the grid.

    Returns:
        (N, h, w) in 0..1, zero outside the boxes.
    """
    inside = inside_boxes(boxes, *prototypes.shape[1:])
    return assemble_masks(prototypes, coefficients).sigmoid() * inside


def scale_boxes(boxes: Tensor, size: Tuple[int, int]) -> Tensor:
    """From boxes relative to the image to boxes in a grid or picture of (height, width)."""
    height, width = size
    return boxes * boxes.new_tensor([width, height] * 2)


def scale_and_clip(boxes: Tensor, size: Tuple[int, int]) -> Tensor:
    """From boxes relative to the image to boxes in an image of some size.

    As in the authors' ``sanitize_coordinates``, the upper left corner is clipped at 0 and the lower
    right one at the size. So a box that lies outside the image, whose mask is empty, is left
    with its corners in the wrong order; it counts among the detections all the same.

    Args:
        boxes: (N, 4) XYXY, in units of the sides of the image.
        size: (height, width), in pixels.

    Returns:
        (N, 4) XYXY, in pixels.
    """
    height, width = size
    upper_left, lower_right = scale_boxes(boxes, size).split(2, dim=1)
    lower_right = torch.minimum(lower_right, boxes.new_tensor([width, height]))
    return torch.cat([upper_left.clamp(min=0), lower_right], dim=1)


def resize_masks(masks: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resize soft masks bilinearly and threshold them at 0.5.

    Args:
        masks: (N, h, w) in 0..1.
        size: (height, width) of the result.

    Returns:
        (N, height, width) bool.
    """
    resized = masks.new_empty((len(masks), *size), dtype=torch.bool)
    chunk = max(1, _MAX_RESIZED_ELEMENTS // (size[0] * size[1]))
    for part, out in zip(masks.split(chunk), resized.split(chunk)):
        soft = F.interpolate(part[:, None], size=size, mode="bilinear", align_corners=False)
        torch.gt(soft[:, 0], 0.5, out=out)
    return resized
