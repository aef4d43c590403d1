"""COCO's run-length encoded masks, read without rasterising them."""

from numbers import Integral
from typing import Any

import numpy as np

# pycocotools holds a number of pixels in 32 bits, for which 7 characters of 5 bits are enough.
_MAX_PIXELS = 2**32
_MAX_CHARACTERS = 7


def rle_size(rle: dict[str, Any]) -> tuple[int, int]:
    """(width, height) that an RLE claims.

    Raises:
        ValueError: if it claims none.
    """
    size = rle.get("size")
    if not (
        isinstance(size, (list, tuple))
        and len(size) == 2
        and all(isinstance(side, Integral) and not isinstance(side, bool) for side in size)
    ):
        raise ValueError(f"'size' is {size!r}, not [height, width]")
    return size[1], size[0]


def read_runs(rle: dict[str, Any]) -> np.ndarray:
    """
    Args:
        rle: compressed or not.

    Returns:
        (R,) int64, the lengths of the runs of background, mask, background, ...

    Raises:
        ValueError: if they cannot be read, or do not cover the size.
    """
    width, height = rle_size(rle)
    num_pixels = width * height
    if width < 1 or height < 1 or num_pixels >= _MAX_PIXELS:
        raise ValueError(f"it is {width} x {height} (width x height)")
    counts = rle.get("counts")
    runs = decode_runs(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or (runs < 0).any():
        raise ValueError("'counts' is neither a string nor a list of lengths")
    covered = int(runs.sum()) if (runs <= num_pixels).all() else "more"
    if covered != num_pixels:
        raise ValueError(f"its runs cover {covered} of {num_pixels} pixels")
    return runs.astype(np.int64)


def decode_runs(counts: str | bytes) -> np.ndarray:
    """The lengths of the runs that a compressed RLE of COCO stands for, (R,) int64.

    A number is a sequence of characters of six bits each, above "0", the least significant first:
    five of the number and one that says whether more follow; the highest bit of the last is the
    sign. From the fourth on, numbers are differences to the last but one. (pycocotools decodes it,
    but does not say when the runs cover too little.)

    Raises:
        ValueError: if it ends within a number, or has other characters, or too many.
    """
    encoded = counts.encode() if isinstance(counts, str) else counts
    bits = np.frombuffer(encoded, np.uint8).astype(np.int64) - ord("0")
    if ((bits < 0) | (bits >= 64)).any():
        raise ValueError("'counts' has characters that no RLE has")
    last = (bits & 32) == 0
    if len(bits) == 0 or not last[-1]:
        raise ValueError("'counts' ends within a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError("'counts' has a number that is too large")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
