"""From prototypes and coefficients to the masks of an image: pure functions of tensors."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Largest number of float pixels that a resize holds at once, to limit memory. On a CPU they should
# fit the cache.
_MAX_PIXELS = 2**25
_MAX_CPU_PIXELS = 2**18


def assemble_masks(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Linear combinations of the prototypes (arXiv 1904.02689, equation 1, without the sigmoid).

    Args:
        prototypes: (k, h, w).
        coefficients: (N, k).

    Returns:
        (N, h, w) mask logits.
    """
    return (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Grid cells that belong to each box, with a margin of one cell.

    As in the authors' ``crop``, a cell belongs to a box if x1 - 1 <= column < x2 + 1, likewise for
    rows.

    Args:
        boxes: (N, 4) XYXY, in grid cells.
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
    """Masks cropped to their boxes, not thresholded.

    Args:
        prototypes: (k, h, w).
        coefficients: (N, k).
        boxes: (N, 4) XYXY, in grid cells.

    Returns:
        (N, h, w) in 0..1, zero outside the boxes, see :func:`inside_boxes`.
    """
    inside = inside_boxes(boxes, *prototypes.shape[1:])
    return assemble_masks(prototypes, coefficients).sigmoid() * inside


def scale_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 4) boxes relative to the image -> boxes in pixels or cells of a (height, width) grid."""
    scaled = boxes.clone()
    scaled[:, 0::2] *= size[1]
    scaled[:, 1::2] *= size[0]
    return scaled


def clip_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Clip top left corners to at least 0, bottom right corners to at most the image size.

    As in the authors' ``sanitize_coordinates``, and unlike in :meth:`Boxes.clip`, the other corner
    of a box outside the image stays there, so that x1 > x2 or y1 > y2.

    Args:
        boxes: (N, 4) XYXY, in pixels.
        size: (height, width), in pixels.

    Returns:
        (N, 4) XYXY, in pixels.
    """
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    clipped = [x1.clamp(min=0), y1.clamp(min=0), x2.clamp(max=width), y2.clamp(max=height)]
    return torch.stack(clipped, dim=1)


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize masks bilinearly, without antialiasing, and threshold them at 0.5.

    Args:
        masks: (N, h, w) bool, or float in 0..1.
        size: (height, width) of the result.

    Returns:
        (N, height, width) bool.
    """
    resized = masks.new_empty((len(masks), *size), dtype=torch.bool)
    chunk = max(1, _MAX_PIXELS // max(1, math.prod(masks.shape[1:]), math.prod(size)))
    for part, out in zip(masks.split(chunk), resized.split(chunk)):
        soft = F.interpolate(part[:, None].float(), size=size, mode="bilinear")
        torch.gt(soft[:, 0], 0.5, out=out)
    return resized


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
    if masks.device.type == "cpu":
        return _paste_cropped_masks(masks, boxes, size)
    # On a GPU, fetching the boxes takes longer than resizing whole masks.
    return resize_masks(masks, size)


def _paste_cropped_masks(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Resize one mask at a time, and of it only what is inside the box."""
    num, grid_height, grid_width = masks.shape
    height, width = size
    # A bilinear resize is a matrix product in each direction.
    rows = _bilinear_matrix(grid_height, height, masks)
    columns = _bilinear_matrix(grid_width, width, masks).t()
    pasted = _lazy_zeros((num, height, width))
    crops = _crops(boxes, grid_height, grid_width).tolist()
    for mask, out, (c1, r1, c2, r2) in zip(masks, pasted, crops):
        if c1 >= c2 or r1 >= r2:
            continue
        # Pixels that are nearer to cells outside the crop are at most 0.5.
        y1, y2 = r1 * height // grid_height, math.ceil(r2 * height / grid_height)
        x1, x2 = c1 * width // grid_width, math.ceil(c2 * width / grid_width)
        out = out[y1:y2, x1:x2]
        tall = rows[y1:y2, r1:r2] @ mask[r1:r2, c1:c2]
        chunk = max(1, _MAX_CPU_PIXELS // out.shape[1])
        for part, out_part in zip(tall.split(chunk), out.split(chunk)):
            torch.gt(part @ columns[c1:c2, x1:x2], 0.5, out=out_part)
    return pasted


def _crops(boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, 4) int64 XYXY ranges of the grid cells in :func:`inside_boxes`, ends excluded."""
    limits = boxes.new_tensor([width, height])
    first = (boxes[:, :2] - 1).ceil().clamp(min=0).minimum(limits)
    last = (boxes[:, 2:] + 1).ceil().clamp(min=0).minimum(limits)
    return torch.cat([first, last], dim=1).long()


def _bilinear_matrix(size: int, new_size: int, like: Tensor) -> Tensor:
    """(new_size, size) matrix of a bilinear resize, in the dtype of `like`."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(identity, size=new_size, mode="linear")[0].t()


def _lazy_zeros(shape: tuple[int, ...]) -> Tensor:
    """CPU bool zeros that take up memory only where they are written to.

    For 100 small masks of 3840 x 2160: 52 MB, `np.zeros` (huge pages) 262 MB, `torch.zeros` 821 MB.
    """
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.bool)
    memory = mmap.mmap(-1, math.prod(shape), access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.bool).view(shape)
