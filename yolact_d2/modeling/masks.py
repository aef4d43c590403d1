"""From prototypes and coefficients to the masks of a picture: pure functions of tensors."""

import math
import mmap

import torch
from torch import Tensor
from torch.nn import functional as F

# Bound the memory of a resize: elements of one float chunk. On a CPU it should fit the cache.
_MAX_RESIZED_ELEMENTS = 2**26
_MAX_CPU_ELEMENTS = 2**18


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
    the box and a margin of one cell. A cell reaches from its column to the next, so to the right
    and to the bottom the margin is up to two cells wide.

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


def cell_ranges(boxes: Tensor, height: int, width: int) -> Tensor:
    """The first column and row of the cells in :func:`inside_boxes`, and the first after them.

    Returns:
        (N, 4) int64; empty if a first is not before its last.
    """
    limits = boxes.new_tensor([width, height])
    first = (boxes[:, :2] - 1).ceil().clamp(min=0).minimum(limits)
    last = (boxes[:, 2:] + 1).ceil().clamp(min=0).minimum(limits)
    return torch.cat([first, last], dim=1).long()


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


def scale_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """From boxes relative to the image to boxes in a grid or picture of (height, width)."""
    scaled = boxes.clone()
    scaled[:, 0::2] *= size[1]
    scaled[:, 1::2] *= size[0]
    return scaled


def scale_and_clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
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
    clipped = scale_boxes(boxes, size)
    clipped[:, :2].clamp_(min=0)
    clipped[:, 2].clamp_(max=size[1])
    clipped[:, 3].clamp_(max=size[0])
    return clipped


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks of the detections in a picture, in the way that suits the device.

    A pixel is only set if its centre lies among the cells that :func:`inside_boxes` lets in. So no
    mask leaves its box by more than one cell to the left and to the top, and two to the right and
    to the bottom: width / w and height / h pixels each. The resize adds nothing to that, for where
    the cells outside count for half or more, there is no more than half left.

    Args:
        masks: (N, h, w) in 0..1, as :func:`soft_masks` gives them.
        boxes: (N, 4) XYXY, in cells.
        size: (height, width) of the result, in pixels.

    Returns:
        (N, height, width) bool.
    """
    if masks.device.type == "cpu":
        return resize_cropped_masks(masks, boxes, size)
    # On a GPU it takes longer to ask where the boxes are than to resize everything.
    return resize_masks(masks, size)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
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


def resize_cropped_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """:func:`resize_masks` of masks that are zero outside their boxes, on a CPU.

    Only what the boxes cover is computed, one mask after the other, and only that part of the
    result is ever written to.

    Args:
        masks: (N, h, w) in 0..1, as :func:`soft_masks` gives them.
        boxes: (N, 4) XYXY, in cells.
        size: (height, width) of the result.

    Returns:
        (N, height, width) bool.
    """
    # Bilinear interpolation, as a matrix for each direction.
    rows = bilinear_weights(masks.shape[1], size[0], masks)
    columns = bilinear_weights(masks.shape[2], size[1], masks).t()
    resized = lazy_zeros((len(masks), *size))
    cells = cell_ranges(boxes, *masks.shape[1:])
    # A pixel nearer to a cell outside is at most half inside, so not above the threshold.
    scale = boxes.new_tensor([size[1] / masks.shape[2], size[0] / masks.shape[1]])
    first = (cells[:, :2] * scale).floor().int().tolist()
    last = (cells[:, 2:] * scale).ceil().int().tolist()
    for mask, out, (c1, r1, c2, r2), (x1, y1), (x2, y2) in zip(
        masks, resized, cells.tolist(), first, last
    ):
        if c1 >= c2 or r1 >= r2:
            continue
        out = out[y1:y2, x1:x2]
        tall = rows[y1:y2, r1:r2] @ mask[r1:r2, c1:c2]
        chunk = max(1, _MAX_CPU_ELEMENTS // out.shape[1])
        for part, out_part in zip(tall.split(chunk), out.split(chunk)):
            torch.gt(part @ columns[c1:c2, x1:x2], 0.5, out=out_part)
    return resized


def lazy_zeros(shape: tuple[int, ...]) -> Tensor:
    """A bool tensor on the CPU of zeros that take up memory only where they are written to.

    `torch.zeros` fills them in. `numpy.zeros` does not, but asks for large pages, which take more
    memory and may take long to find.
    """
    num = math.prod(shape)
    if num == 0:
        return torch.zeros(shape, dtype=torch.bool)
    memory = mmap.mmap(-1, num, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.bool).view(shape)


def bilinear_weights(size: int, new_size: int, like: Tensor) -> Tensor:
    """(new_size, size) what each old value adds to each new one in a bilinear resize; of the type
    of the tensor `like`."""
    unit = torch.eye(size, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(unit, size=new_size, mode="linear", align_corners=False)[0].t()
