"""Arrange several images in one."""

import math
from collections.abc import Sequence

import numpy as np

_GAP = 8  # pixels


def sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange images in rows on white, each in the middle of a cell.

    All cells have the size of the largest image, plus a gap.

    Args:
        images: (H, W, 3) uint8, of any sizes; at least one.
        columns: number of images in a row.

    Returns:
        (H', W', 3) uint8
    """
    height, width = np.max([image.shape[:2] for image in images], axis=0) + _GAP
    rows = math.ceil(len(images) / columns)
    drawing = np.full((rows * height, min(columns, len(images)) * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        h, w = image.shape[:2]
        y = i // columns * height + (height - h) // 2
        x = i % columns * width + (width - w) // 2
        drawing[y : y + h, x : x + w] = image
    return drawing
