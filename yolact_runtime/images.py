"""Images as arrays: files, channels and sizes."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from .masks import antialiased_matrix, bilinear_matrix

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type: gray, RGB, gray and RGB with alpha


def to_channels(image: np.ndarray, channels: str) -> np.ndarray:
    """An image, (H, W, 3) uint8, BGR, or (H, W) uint8, in "BGR", "RGB" or "L", (H, W, 3 or 1).

    Raises:
        ValueError: if it is no such image.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"an image is an array, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image is (H, W, 3) or (H, W) uint8, not {image.shape} {image.dtype}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.shape[2] != 3:
        raise ValueError(f"an image has 3 channels, BGR, not {image.shape[2]}")
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


def read_image(path: str) -> np.ndarray:
    """An image file as (H, W, 3) uint8, BGR. Without OpenCV it must be a PNG file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        import cv2
    except ImportError:
        return _decode_png(data, path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path!r} cannot be read as an image")
    return image


def write_png(path: str, image: np.ndarray) -> None:
    """
    Args:
        image: (H, W, 3) uint8, BGR.
    """
    height, width = image.shape[:2]
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # the first byte is the filter: none
    lines[:, 1:] = image[:, :, ::-1].reshape(height, -1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes())),
        (b"IEND", b""),
    )
    with open(path, "wb") as file:
        file.write(_PNG)
        for kind, data in chunks:
            checksum = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + checksum)


def _decode_png(data: bytes, path: str) -> np.ndarray:
    """An 8-bit PNG file that is not interlaced and has no palette."""
    if not data.startswith(_PNG):
        raise ValueError(f"{path!r} is no PNG file: other formats need opencv-python")
    position, compressed, header = len(_PNG), b"", b""
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        content = data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            compressed += content
        position += 12 + length
    try:
        width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
        raw = zlib.decompress(compressed)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"{path!r} is truncated: {error}") from error
    if depth != 8 or colour not in _PNG_CHANNELS or interlace:
        raise ValueError(f"{path!r} is a kind of PNG that needs opencv-python")
    channels = _PNG_CHANNELS[colour]
    length = width * channels
    lines, above = bytearray(), bytes(length)
    for start in range(0, len(raw), length + 1):
        line = raw[start + 1 : start + 1 + length]
        above = _unfilter(raw[start], line, above, channels)
        lines += above
    image = np.frombuffer(lines, np.uint8).reshape(height, width, channels)
    if channels < 3:
        return np.repeat(image[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(image[:, :, 2::-1])


def _unfilter(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    """Undo a PNG filter: bytes are differences to a prediction from the pixels to the left and
    above, which are `step` bytes apart."""
    if kind == 0:
        return line
    out = bytearray(step) + line  # begins with a pixel of zeros
    corners = bytes(step) + above
    for i, value in enumerate(line):
        left, up, corner = out[i], above[i], corners[i]
        if kind == 4:  # Paeth: the neighbour nearest to left + up - corner
            estimate = left + up - corner
            predicted = min((left, up, corner), key=lambda x: abs(estimate - x))
        else:
            predicted = (0, left, up, (left + up) // 2)[kind]
        out[i + step] = (value + predicted) % 256
    return bytes(out[step:])
