"""Image files: how they are read, and what is known of them before."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError

# EXIF orientations that turn the image by 90 degrees; Detectron2 applies them when it reads.
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = (5, 6, 7, 8)
# Where Pillow finds it in a PNG.
_PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
# Pillow's modes of grey images of 16 bits. Some of its versions say "I" instead.
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnreadableImage(ValueError):
    """An image file that cannot be used. The message is its path, a blank and the reason."""


def read_image(path: str, format: str) -> np.ndarray:
    """Detectron2's :func:`read_image`, but for grey images of 16 bits, PNG and TIFF files. The first
    are read by their high byte, as OpenCV, and so the authors' code, does (Detectron2 makes nearly
    all of them white). PNG files are turned by EXIF before the pixels only, as
    :func:`displayed_size` knows it; TIFF files once (Detectron2 turns them twice).

    Args:
        format: "RGB", "BGR", or another that Detectron2 knows.

    Returns:
        (H, W, C) uint8 (of "YUV-BT.601" float), turned as EXIF says.

    Raises:
        UnreadableImage: if the file is missing, cut or no image, claims more pixels than Pillow
            believes (179 million), or has values that do not fit into 16 bits.
    """
    with _naming(path), PathManager.open(path, "rb") as file, Image.open(file) as image:
        _check_mode(image)
        if image.format not in ("PNG", "TIFF") and image.mode not in _GREY_16:
            return utils.read_image(path, format)
        turned = ImageOps.exif_transpose(image) if _orientation(image) else image
        if turned.mode in _GREY_16:
            turned = _high_byte(turned)
        return utils.convert_PIL_to_numpy(turned, format)


def displayed_size(path: str) -> tuple[int, int]:
    """(width, height) of an image file as it will be read, from its header alone.

    Raises:
        UnreadableImage: as :func:`read_image`, as far as the header tells.
    """
    with _naming(path), PathManager.open(path, "rb") as file, Image.open(file) as image:
        _check_mode(image)
        width, height = image.size
        if image.format == "TIFF":  # of which some versions of Pillow give the turned size
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
        turned = _orientation(image) in _EXIF_TURNED
    return (height, width) if turned else (width, height)


def leaves_folder(name: str) -> bool:
    """Whether a relative path is absolute after all, or climbs up. Links are followed nowhere."""
    normal = os.path.normpath(name)
    return os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # says nothing about the file
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path} does not exist") from error
    except Exception as error:  # Pillow raises many kinds for what is not an image
        if isinstance(error, UnidentifiedImageError):
            reason = "it is in no format that Pillow knows"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(f"{path} cannot be read as an image: {reason}") from error


def _orientation(image: Image.Image) -> int | None:
    """How EXIF says that the image is turned, if it does. In a PNG it may come behind the pixels,
    where only decoding all of it would tell: that is not looked for, nor are broken ones."""
    if image.format == "PNG" and _PNG_EXIF.isdisjoint(image.info):
        return None
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # many kinds, which Detectron2 passes over too
        return None


def _check_mode(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ValueError("it is a program, in PostScript, that would have to be run")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers; save it with 8 or 16 bits")


def _high_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high >= 2**16:
        raise ValueError(f"its values reach from {low} to {high}; save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
