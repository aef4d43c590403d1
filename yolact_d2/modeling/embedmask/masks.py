"""Masks of EmbedMask's detections at the resolution of the image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..masks import inside_windows, paste_windows, resize_masks
from ..tracing import is_tracing
from .losses import log_probability

STRIDE = 4  # pixels of the network input in a cell
# The log probability outside the window of a detection.
OUTSIDE = -10.0
# paste_windows leaves out pixels that are nearer to cells outside the window. OUTSIDE has more than
# half of the weight in their log probability, so their probability is below exp(-5) = 0.0067.
MIN_THRESHOLD = 0.007


def windows(boxes: Tensor, grid_size: Sequence[int]) -> Tensor:
    """The cells in which masks are computed: those of the box, two more to its left and top, and
    one more to its right and bottom.

    Args:
        boxes: (N, 4) XYXY, in pixels of the network input.
        grid_size: (height, width).

    Returns:
        (N, 4) int64 XYXY, ends excluded.
    """
    cells = (boxes / STRIDE).long()
    cells = torch.stack([cells[:, :2] - 2, cells[:, 2:] + 2], dim=1)
    height, width = grid_size
    x, y = cells.clamp(min=0).unbind(dim=2)
    return torch.stack([x.clamp(max=width), y.clamp(max=height)], dim=2).flatten(1)


def paste_masks(
    pixels: Tensor,
    embeddings: Tensor,
    margins: Tensor,
    boxes: Tensor,
    input_size: Sequence[int],
    size: Sequence[int],
    threshold: float,
) -> Tensor:
    """The pixels whose probability to belong to a detection exceeds a threshold.

    The logarithm of the probability is resized to the image, not the probability itself. Outside
    the window of the detection it is -10.

    Args:
        pixels: (D, h, w) p, a cell for 4 x 4 pixels of the padded network input.
        embeddings, margins: (N, D) q and m of the detections.
        boxes: (N, 4) XYXY, in pixels of the network input.
        input_size: (height, width) of the network input without padding.
        size: (height, width) of the result, in pixels.
        threshold: of the probability, at least `MIN_THRESHOLD`.

    Returns:
        (N, height, width) bool.
    """
    grid = pixels.shape[1:]
    # (height, width) of the padded network input, scaled as the image is.
    resized = [-(-STRIDE * g * s // i) for g, s, i in zip(grid, size, input_size)]
    if pixels.device.type != "cpu" or is_tracing():
        # A loop over windows would wait for a GPU to tell where they are.
        masks = window_masks(pixels, embeddings, margins, boxes)
        return resize_masks(masks, size, 1 - math.log(threshold) / OUTSIDE, resized)
    cells = windows(boxes, grid).tolist()
    parts = (
        log_probability(pixels[:, y1:y2, x1:x2], q[None], m[None])[0] - OUTSIDE
        for q, m, (x1, y1, x2, y2) in zip(embeddings, margins, cells)
    )
    return paste_windows(parts, cells, grid, resized, size, math.log(threshold) - OUTSIDE)


def window_masks(pixels: Tensor, embeddings: Tensor, margins: Tensor, boxes: Tensor) -> Tensor:
    """(10 + ln P) / 10 of the cells in the windows of the boxes, 0 elsewhere.

    Args:
        pixels, embeddings, margins, boxes: see :func:`paste_masks`.

    Returns:
        (N, h, w), at most 1.
    """
    # One dimension after the other, because all differences at once are D times as large.
    log = -sum(
        m[:, None, None] * (p - q[:, None, None]).square()
        for p, q, m in zip(pixels, embeddings.t(), margins.t())
    )
    grid = pixels.shape[1:]
    return (1 - log / OUTSIDE) * inside_windows(windows(boxes, grid), *grid)
