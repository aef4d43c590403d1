"""Masks on a coarse grid, resized to the image."""

from collections.abc import Sequence

import numpy as np


def paste_masks(
    masks: np.ndarray, size: Sequence[int], resized_size: Sequence[int], threshold: float
) -> np.ndarray:
    """Resize masks bilinearly, and threshold them.

    Args:
        masks: (N, h, w) float32, 0 far from their objects.
        size: (height, width) of the result, the upper left of what the whole grid is resized to.
        resized_size: (height, width) that the whole grid is resized to, in pixels.
        threshold: above 0.

    Returns:
        (N, height, width) bool.
    """
    grid = masks.shape[1:]
    # A bilinear resize is a matrix product in each direction.
    rows, columns = (bilinear_matrix(*x) for x in zip(grid, resized_size, size))
    # Only the cells that are not 0 are computed, and the pixels that they touch.
    in_rows, in_columns = (np.any(masks, axis).astype(np.float32) for axis in (2, 1))
    extents = in_rows, in_columns, in_rows @ rows.T, in_columns @ columns.T
    pasted = np.zeros((len(masks), *size), bool)
    for mask, out, *values in zip(masks, pasted, *extents):
        y, x, out_y, out_x = map(_extent, values)
        out[out_y, out_x] = rows[out_y, y] @ mask[y, x] @ columns[out_x, x].T > threshold
    return pasted


def _extent(values: np.ndarray) -> slice:
    """From the first value that is not 0 to the last."""
    (indices,) = values.nonzero()
    return slice(indices[0], indices[-1] + 1) if len(indices) else slice(0)


def bilinear_matrix(size: int, resized_size: int, end: int) -> np.ndarray:
    """(end, size): the first `end` rows of the matrix of a bilinear resize."""
    source = ((np.arange(end) + 0.5) * size / resized_size - 0.5).clip(0).astype(np.float32)
    low = np.minimum(source.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    fraction = source - low
    matrix = np.zeros((end, size), np.float32)
    np.add.at(matrix, (np.arange(end), low), 1 - fraction)
    np.add.at(matrix, (np.arange(end), high), fraction)
    return matrix


def antialiased_matrix(size: int, resized_size: int) -> np.ndarray:
    """(resized_size, size): the matrix of a bilinear resize that averages when it shrinks."""
    scale = size / resized_size
    centers = (np.arange(resized_size) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = (1 - distances).clip(0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
