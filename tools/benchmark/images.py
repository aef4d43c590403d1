"""The images that all models get: files, or generated ones."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np

from yolact_d2.data import read_image

T = TypeVar("T")
Source = str | tuple[int, int, int]
"""A file, or (height, width, seed) of a generated image."""


def read(source: Source) -> np.ndarray:
    """(H, W, 3) uint8, BGR.

    Raises:
        UnreadableImage: naming the file.
    """
    return read_image(source, "BGR") if isinstance(source, str) else generate_image(*source)


def generate_image(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth coloured noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def make_batches(images: Sequence[T], batch_size: int) -> list[list[T]]:
    """The images in turn, the first again after the last, until the batches repeat."""
    endless = itertools.cycle(images)
    num_batches = len(images) // math.gcd(len(images), batch_size)
    return [[next(endless) for _ in range(batch_size)] for _ in range(num_batches)]


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT".

    Raises:
        ValueError: if it is anything else.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"the size {text!r} should be WIDTHxHEIGHT, such as 640x427")
    return int(match[2]), int(match[1])
