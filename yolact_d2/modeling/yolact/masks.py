"""From prototypes and coefficients to the masks of an image: pure functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..masks import inside_windows, paste_windows, resize_masks
from ..tracing import is_eager_cpu


def assemble_masks(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Linear combinations of the prototypes (arXiv 1904.02689, equation 1, without the sigmoid).

    Args:
        prototypes: (..., k, h, w); leading dimensions are images.
        coefficients: (..., N, k).

    Returns:
        (..., N, h, w) mask logits.
    """
    return (coefficients @ prototypes.flatten(-2)).unflatten(-1, prototypes.shape[-2:])


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Grid cells that belong to each box, with a margin of one cell.

    As in the authors' ``crop``, a cell belongs to a box if x1 - 1 <= column < x2 + 1, likewise for
    rows.

    Args:
        boxes: (..., 4) XYXY, in grid cells.
        height, width: of the grid.

    Returns:
        (..., height, width) bool.
    """
    windows = torch.cat([boxes[..., :2] - 1, boxes[..., 2:] + 1], dim=-1)
    return inside_windows(windows, height, width)


def soft_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """Masks cropped to their boxes, not thresholded.

    Args:
        prototypes: (..., k, h, w); leading dimensions are images.
        coefficients: (..., N, k).
        boxes: (..., N, 4) XYXY, in grid cells.

    Returns:
        (..., N, h, w) in 0..1, zero outside the boxes, see :func:`inside_boxes`.
    """
    inside = inside_boxes(boxes, *prototypes.shape[-2:])
    return assemble_masks(prototypes, coefficients).sigmoid() * inside


def scale_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (..., 4) relative to the image -> in pixels or cells of a (height, width) grid."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([x1 * width, y1 * height, x2 * width, y2 * height], dim=-1)


def clip_boxes(boxes: Tensor) -> Tensor:
    """Clip top left corners to at least 0, bottom right corners to at most 1.

    As in the authors' ``sanitize_coordinates``, and unlike in :meth:`Boxes.clip`, the other corner
    of a box outside the image stays there, so that x1 > x2 or y1 > y2.

    Args:
        boxes: (..., 4) XYXY, relative to the image.

    Returns:
        (..., 4)
    """
    return torch.cat([boxes[..., :2].clamp(min=0), boxes[..., 2:].clamp(max=1)], dim=-1)


def paste_masks(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The masks of detections at the resolution of the image.

    A mask extends beyond its box by less than one grid cell to the left and top, and less than two
    to the right and bottom.

    Args:
        masks: (N, h, w) in 0..1, zero outside their boxes, see :func:`soft_masks`.
        boxes: (N, 4) XYXY, in grid cells.
        size: (height, width) of the result, in pixels.

    Returns:
        (N, height, width) bool, what :func:`resize_masks` returns up to rounding.
    """
    if not is_eager_cpu(masks):
        # On a GPU, fetching the boxes takes longer than resizing whole masks.
        return resize_masks(masks, size)
    grid = masks.shape[1:]
    windows = _windows(boxes, *grid).tolist()
    parts = [mask[y1:y2, x1:x2] for mask, (x1, y1, x2, y2) in zip(masks, windows)]
    return paste_windows(parts, windows, grid, size, size, 0.5)


def detection_masks(
    prototypes: Tensor, coefficients: Tensor, boxes: Tensor, size: Sequence[int]
) -> Tensor:
    """The masks of detections at the resolution of the image, from prototypes.

    Args:
        prototypes: (k, h, w).
        coefficients: (N, k).
        boxes: (N, 4) XYXY, in grid cells.
        size: (height, width) of the result, in pixels.

    Returns:
        (N, height, width) bool, :func:`paste_masks` of :func:`soft_masks` up to rounding.
    """
    if not is_eager_cpu(prototypes):
        return paste_masks(soft_masks(prototypes, coefficients, boxes), boxes, size)
    # A box may be a detection of several classes. Its mask is computed once.
    targets = _equal_rows(torch.cat([boxes, coefficients], dim=1))
    first = [indices[0] for indices in targets]
    grid = prototypes.shape[1:]
    windows = _windows(boxes[first], *grid).tolist()
    logits = assemble_masks(prototypes, coefficients[first])
    parts = (mask[y1:y2, x1:x2].sigmoid() for mask, (x1, y1, x2, y2) in zip(logits, windows))
    return paste_windows(parts, windows, grid, size, size, 0.5, targets)


def _equal_rows(x: Tensor) -> list[list[int]]:
    """The indices of equal rows of a CPU tensor (N, D): one list for each different row."""
    indices: dict[bytes, list[int]] = {}
    for i, row in enumerate(x.detach().numpy()):
        indices.setdefault(row.tobytes(), []).append(i)
    return [*indices.values()]


def _windows(boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, 4) int64 XYXY ranges of the grid cells in :func:`inside_boxes`, ends excluded."""
    limits = boxes.new_tensor([width, height])
    first = (boxes[:, :2] - 1).ceil().clamp(min=0).minimum(limits)
    last = (boxes[:, 2:] + 1).ceil().clamp(min=0).minimum(limits)
    return torch.cat([first, last], dim=1).long()
