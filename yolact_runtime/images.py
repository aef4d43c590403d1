"""Images as arrays: files, channels and sizes."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .masks import antialiased_matrix, bilinear_matrix


def to_channels(image: np.ndarray, channels: str) -> np.ndarray:
    """An image, (H, W, 3) uint8, BGR, or (H, W) or (H, W, 1), grey, in "BGR", "RGB" or "L".

    Returns:
        (H, W, 3), for "L" (H, W, 1).

    Raises:
        ValueError: if it is no such image.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"an image is an array, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image is (H, W, 3) or (H, W) uint8, not {image.shape} {image.dtype}")
    image = image.reshape(*image.shape[:2], -1)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    if image.shape[2] != 3:
        hint = ": pass image[:, :, :3]" if image.shape[2] == 4 else ""
        raise ValueError(f"an image has 3 channels, BGR, not {image.shape[2]}{hint}")
    if channels == "L":
        # ITU-R 601, as in Pillow.
        weights = np.array([7471, 38470, 19595], np.uint32)
        return ((image @ weights + 0x8000) >> 16).astype(np.uint8)[:, :, None]
    return np.ascontiguousarray(image[:, :, ::-1] if channels == "RGB" else image)


def resize_bilinear(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize (H, W, channels) float32 without antialiasing."""
    rows, columns = (bilinear_matrix(*x) for x in zip(image.shape[:2], size, size))
    tall = np.tensordot(rows, image, axes=(1, 0))
    return np.tensordot(tall, columns, axes=(1, 1)).transpose(0, 2, 1)


def resize_antialiased(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize (H, W, channels) with values in 0..255 as Pillow does 8-bit images: to integers."""
    rows, columns = (antialiased_matrix(*x) for x in zip(image.shape[:2], size))
    wide = np.floor(np.tensordot(image, columns, axes=(1, 1)) + 0.5)  # (H, channels, width)
    return np.floor(np.tensordot(rows, wide, axes=(1, 0)) + 0.5).transpose(0, 2, 1)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as it is displayed, i.e. after its EXIF orientation: (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if OpenCV is missing.
        ValueError: naming the file, if it cannot be read.
    """
    data = np.fromfile(path, np.uint8)
    image = opencv().imdecode(data, 1) if len(data) else None
    if image is None:
        raise ValueError(f"{os.fspath(path)!r} cannot be read as an image")
    return image


def write_image(path: str, image: np.ndarray) -> None:
    """
    Args:
        path: ends in a suffix that OpenCV knows, such as .png.
        image: (H, W, 3) uint8, BGR.
    """
    opencv().imencode(os.path.splitext(path)[1], image)[1].tofile(path)


def opencv() -> Any:
    """
    Raises:
        ImportError: saying what is missing.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "opencv-python is missing, which reads, draws and writes images: pip install "
            "opencv-python"
        ) from error
    return cv2
