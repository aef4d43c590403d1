"""Masks on coarse grids, resized to the resolution of images: pure functions of tensors."""

import math
import mmap
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .tracing import is_tracing

# Largest number of float pixels that a resize holds at once, to limit memory. On a CPU they should
# fit the cache.
_MAX_PIXELS = 2**25
_MAX_CPU_PIXELS = 2**18
# Largest number of bytes that are filled with zeros at once, which is faster than page by page.
_MAX_FILLED_BYTES = 2**26


def inside_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Grid cells in each window: x1 <= column < x2, likewise for rows.

    Args:
        windows: (..., 4) XYXY, in grid cells.
        height, width: of the grid.

    Returns:
        (..., height, width) bool.
    """
    x1, y1, x2, y2 = windows[..., None].unbind(dim=-2)
    columns = torch.arange(width, device=windows.device)
    rows = torch.arange(height, device=windows.device)
    in_columns, in_rows = (columns >= x1) & (columns < x2), (rows >= y1) & (rows < y2)
    return in_rows[..., :, None] & in_columns[..., None, :]


def resize_masks(
    masks: Tensor,
    size: Sequence[int],
    threshold: float = 0.5,
    resized_size: Sequence[int] | None = None,
) -> Tensor:
    """Resize masks bilinearly, without antialiasing, and threshold them.

    Args:
        masks: (N, h, w) bool or float.
        size: (height, width) of the result, the upper left of the resized masks.
        threshold: a pixel above it belongs to the mask.
        resized_size: (height, width) that whole masks are resized to, by default `size`.

    Returns:
        (N, height, width) bool.
    """
    whole = [*(size if resized_size is None else resized_size)]
    height, width = size
    if is_tracing():
        soft = F.interpolate(masks[:, None].float(), size=whole, mode="bilinear")
        return soft[:, 0, :height, :width] > threshold
    resized = masks.new_empty((len(masks), height, width), dtype=torch.bool)
    chunk = max(1, _MAX_PIXELS // max(1, math.prod(masks.shape[1:]), math.prod(whole)))
    for part, out in zip(masks.split(chunk), resized.split(chunk)):
        soft = F.interpolate(part[:, None].float(), size=whole, mode="bilinear")
        torch.gt(soft[:, 0, :height, :width], threshold, out=out)
    return resized


def paste_windows(
    parts: Iterable[Tensor],
    windows: Sequence[Sequence[int]],
    grid_size: Sequence[int],
    resized_size: Sequence[int],
    size: Sequence[int],
    threshold: float,
    targets: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Resize masks on a CPU that are zero outside a window, and threshold them.

    Same as a bilinear resize of whole grids without antialiasing, but only windows are computed,
    one at a time.

    Args:
        parts: of each of M masks the part (h, w) inside its window, float, at most twice the
            threshold.
        windows: M times XYXY, grid cells, ends excluded.
        grid_size: (height, width) of the grid.
        resized_size: (height, width) that the whole grid is resized to.
        size: (height, width) of the result, the upper left of the resized grid.
        threshold: above 0.
        targets: the indices of each mask in the result, each of 0..N-1 once; by default its own.

    Returns:
        (N, height, width) bool.
    """
    if targets is None:
        targets = [[i] for i in range(len(windows))]
    # A bilinear resize is a matrix product in each direction.
    rows, columns = (
        _bilinear_matrix(old, new)[:end] for old, new, end in zip(grid_size, resized_size, size)
    )
    pasted = _lazy_zeros((sum(map(len, targets)), *size))
    for part, (c1, r1, c2, r2), (index, *copies) in zip(parts, windows, targets):
        if c1 >= c2 or r1 >= r2:
            continue
        # Pixels that are nearer to cells outside the window do not exceed the threshold.
        (y1, y2), (x1, x2) = (
            (a * new // old, min(-(-b * new // old), end))
            for a, b, old, new, end in zip((r1, c1), (r2, c2), grid_size, resized_size, size)
        )
        if y1 >= y2 or x1 >= x2:
            continue
        out = pasted[index, y1:y2, x1:x2]
        tall = rows[y1:y2, r1:r2] @ part
        chunk = max(1, _MAX_CPU_PIXELS // out.shape[1])
        for tall_part, out_part in zip(tall.split(chunk), out.split(chunk)):
            torch.gt(tall_part @ columns[x1:x2, c1:c2].t(), threshold, out=out_part)
        for i in copies:
            pasted[i, y1:y2, x1:x2] = out
    return pasted


def _bilinear_matrix(size: int, new_size: int) -> Tensor:
    """(new_size, size) float32 matrix of a bilinear resize."""
    identity = torch.eye(size)[None]
    return F.interpolate(identity, size=new_size, mode="linear")[0].t()


def _lazy_zeros(shape: tuple[int, ...]) -> Tensor:
    """CPU bool zeros. Large ones take up memory only where they are written to.

    For 100 small masks of 3840 x 2160: 52 MB, `np.zeros` (huge pages) 262 MB, `torch.zeros` 821 MB.
    """
    size = math.prod(shape)
    if size <= _MAX_FILLED_BYTES:
        # By one thread, because threads that meet in a new page wait for each other.
        return torch.from_numpy(np.full(shape, False))
    memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.bool).view(shape)
