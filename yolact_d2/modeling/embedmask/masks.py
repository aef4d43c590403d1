"""Masks of EmbedMask's detections at the resolution of the image."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..masks import paste_windows
from .losses import log_probability

STRIDE = 4  # pixels of the network input in a cell
# The log probability outside the window of a detection.
OUTSIDE = -10.0
# Below exp(-5) pixels beyond the window could exceed the threshold, which paste_windows leaves out.
MIN_THRESHOLD = 0.007


def windows(boxes: Tensor, grid_size: Sequence[int]) -> Tensor:
    """(N, 4) int64 XYXY ranges of the cells where the masks of boxes (N, 4) XYXY, in pixels of the
    network input, are computed; ends excluded."""
    cells = (boxes / STRIDE).long() + boxes.new_tensor([-2, -2, 2, 2]).long()
    limits = boxes.new_tensor([*grid_size[::-1]] * 2).long()
    return cells.clamp(min=0).minimum(limits)


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

    What is resized to the image is the logarithm of the probability, which is -10 outside the
    window of the detection.

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
    cells = windows(boxes, grid).tolist()
    # The height and width that the padded input has in the image.
    resized = [-(-STRIDE * g * s // i) for g, s, i in zip(grid, size, input_size)]
    parts = (
        log_probability(pixels[:, y1:y2, x1:x2], q[None], m[None])[0] - OUTSIDE
        for q, m, (x1, y1, x2, y2) in zip(embeddings, margins, cells)
    )
    return paste_windows(
        parts, cells, grid, resized, size, math.log(threshold) - OUTSIDE, pixels.device
    )
