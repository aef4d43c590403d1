"""Training targets of EmbedMask: pure functions of tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Locations(NamedTuple):
    """The L locations of all levels, finest level first."""

    points: Tensor
    """(L, 2) x and y, in pixels of the network input."""
    strides: Tensor
    """(L,) in pixels."""
    ranges: Tensor
    """(L, 2) least and largest distance to a side of the box, in pixels, that a location is
    responsible for; both ends included."""


def at_locations(values: Sequence[float], points: Sequence[Tensor]) -> Tensor:
    """(L,) the value of each location's level, given one value and the points (Li, 2) of each
    level."""
    return torch.cat([x.new_full((x.shape[0],), value) for value, x in zip(values, points)])


def assign_objects(
    locations: Locations, boxes: Tensor, masks: Tensor, center_radius: float
) -> Tensor:
    """Assign at most one object to each location of an image.

    A location can be assigned to an object if it is near the centre of its box and strictly inside,
    if the largest of its distances to the sides of the box is in the range of its level, and if it
    is inside the mask. Of several such objects it gets that with the smallest box.

    Args:
        boxes: (G, 4) XYXY, in pixels.
        masks: (G, H, W) bool, without the padding of the network input.
        center_radius: largest distance from the centre, in strides, along x and y.

    Returns:
        (L,) indices of objects, -1 for background.
    """
    points, strides, ranges = locations
    if len(boxes) == 0:
        return torch.full_like(strides, -1, dtype=torch.int64)
    x, y = points.t()
    distances = box_distances(points, boxes[:, None])
    centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    offsets = (points - centers).abs().amax(dim=2)
    inside = (offsets < center_radius * strides) & (distances.amin(dim=2) > 0)
    largest = distances.amax(dim=2)
    in_range = (largest >= ranges[:, 0]) & (largest <= ranges[:, 1])
    height, width = masks.shape[1:]
    columns, rows = x.long().clamp(max=width - 1), y.long().clamp(max=height - 1)
    in_mask = masks[:, rows, columns] & (x < width) & (y < height)

    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    is_candidate = inside & in_range & in_mask
    candidates = areas[:, None].expand_as(is_candidate).masked_fill(~is_candidate, torch.inf)
    smallest, objects = candidates.min(dim=0)
    return objects.masked_fill(smallest.isinf(), -1)


def box_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """(..., 4) distances of points (..., 2) to the left, top, right and bottom of boxes (..., 4)
    XYXY."""
    return torch.cat(
        torch.broadcast_tensors(points - boxes[..., :2], boxes[..., 2:] - points), dim=-1
    )


def best_locations(assigned: Tensor, ious: Tensor, num_objects: int) -> tuple[Tensor, Tensor]:
    """The location of each object whose predicted box is best.

    Args:
        assigned: (L,), see :func:`assign_objects`.
        ious: (L,) of each predicted box with that of the object it is assigned to.
        num_objects: G.

    Returns:
        (G,) locations, the first of equally good ones; (G,) bool, False for objects that have none.
    """
    is_own = assigned == torch.arange(num_objects, device=assigned.device)[:, None]
    best = ious.expand_as(is_own).masked_fill(~is_own, -1).argmax(dim=1)
    return best, is_own.any(dim=1)


def centerness(distances: Tensor) -> Tensor:
    """Centre-ness (arXiv 1904.01355, equation 3) of (..., 4) distances to the sides of a box."""
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratios = horizontal.amin(dim=-1) / horizontal.amax(dim=-1)
    return (ratios * vertical.amin(dim=-1) / vertical.amax(dim=-1)).sqrt()


def masks_at_stride_4(masks: Tensor, size: Sequence[int]) -> Tensor:
    """The cells of a grid that objects cover: those that a bilinear resize makes larger than 0.

    These are the cells with a pixel of the object among the four in the middle of their 4 x 4.

    Args:
        masks: (G, H, W) bool.
        size: (height, width) of the grid, which covers the padded network input.
    """
    covered = masks.new_zeros(len(masks), *size)
    for y in (1, 2):
        for x in (1, 2):
            part = masks[:, y::4, x::4]
            covered[:, : part.shape[1], : part.shape[2]] |= part
    return covered
