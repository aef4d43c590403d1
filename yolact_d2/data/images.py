"""Reading image files."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag

# Where Pillow finds the orientation in a PNG.
_PNG_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
# Pillow's modes of 16-bit grey images; some versions use "I".
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# How many images are tried in place of one that cannot be read, before training ends.
_MAX_TRIALS = 10


class UnreadableImage(ValueError):
    """An image file cannot be used. The message is its path, a space and the reason."""


def read_image(path: str, format: str) -> np.ndarray:
    """Read an image as Detectron2's :func:`read_image` does, with two corrections.

    - Of 16-bit grey values the high byte is used, as OpenCV and the authors' code do; Detectron2
      clips them to 255, so that nearly all pixels become white.
    - The EXIF orientation of a TIFF is applied once; Detectron2 applies it twice.

    Args:
        format: "RGB", "BGR", or another format that Detectron2 knows.

    Returns:
        (H, W, C) uint8 (float for "YUV-BT.601"), as displayed, i.e. after the EXIF orientation.

    Raises:
        UnreadableImage: if the file is missing, truncated or not an image, claims more pixels than
            Pillow accepts (179 million), or has values that are not integers of up to 16 bits.
    """
    with _raise_unreadable(path), PathManager.open(path, "rb") as file, Image.open(file) as image:
        return to_array(image, format)


def to_array(image: Image.Image, format: str) -> np.ndarray:
    """A PIL image as :func:`read_image` gives it.

    Raises:
        OSError, ValueError: if it is damaged, or has values that are not integers of up to 16 bits.
    """
    _check_format(image)
    upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    if upright.mode in _GREY_16:
        values = np.asarray(upright)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError(
                f"its values are {values.min()} to {values.max()}; save it with 8 or 16 bits"
            )
        upright = Image.fromarray((values >> 8).astype(np.uint8))
    return utils.convert_PIL_to_numpy(upright, format)


def read_or_replace(dataset: Any, index: int) -> tuple[Any, list[str]]:
    """An example of a dataset, or a random other one if its image cannot be read; and the messages
    of the images that could not.

    Raises:
        UnreadableImage: if too many images in a row cannot be read.
    """
    unreadable: list[str] = []
    for _ in range(_MAX_TRIALS):
        try:
            return dataset[index], unreadable
        except UnreadableImage as error:
            unreadable.append(str(error))
            index = random.randrange(len(dataset))
    raise UnreadableImage(f"{_MAX_TRIALS} images in a row cannot be read: {'; '.join(unreadable)}")


def displayed_size(path: str) -> tuple[int, int]:
    """(width, height) that :func:`read_image` will give, from the file's header alone.

    Raises:
        UnreadableImage: if the header shows that :func:`read_image` would raise it.
    """
    with _raise_unreadable(path), PathManager.open(path, "rb") as file, Image.open(file) as image:
        _check_format(image)
        width, height = image.size
        if image.format == "TIFF":  # newer versions of Pillow have applied the orientation
            width, height = image.tag_v2[ExifTag.ImageWidth], image.tag_v2[ExifTag.ImageLength]
        return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def leaves_folder(name: str) -> bool:
    """Whether a path is absolute or leads out of its folder by "..". Links are not resolved."""
    normal = os.path.normpath(name)
    return os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir


@contextlib.contextmanager
def _raise_unreadable(path: str) -> Iterator[None]:
    """Turn every error except lack of memory into :class:`UnreadableImage`."""
    try:
        yield
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path} does not exist") from error
    except UnidentifiedImageError as error:  # its message repeats the path
        raise UnreadableImage(f"{path} cannot be read as an image: unknown format") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(f"{path} cannot be read as an image: {reason}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none or it is damaged."""
    # Without this, getexif would decode all pixels of a PNG to look for EXIF behind them.
    if image.format == "PNG" and _PNG_ORIENTATION.isdisjoint(image.info):
        return 1
    try:
        return image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # Detectron2 ignores damaged EXIF data too
        return 1


def _check_format(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ValueError("it is a PostScript program, which is not executed")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers; save it with 8 or 16 bits")
