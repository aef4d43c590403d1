"""Images as paths, PIL images, arrays or tensors."""

import os
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..data.images import read_image, to_array

AnyImage: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


def to_bgr(image: AnyImage, input_format: str) -> np.ndarray:
    """An image as OpenCV reads it.

    Args:
        image: one of

            * a path or a PIL image, of any mode and orientation, see :func:`read_image`
            * a uint8 array: (H, W, 3), BGR; (H, W) or (H, W, 1), grey
            * a uint8 tensor, as the model takes it: (3, H, W), in the order of `input_format`;
              (H, W) or (1, H, W), grey
        input_format: INPUT.FORMAT of the model: "RGB", "BGR" or "L", for which colours are RGB.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ValueError: naming the file, or the type, shape and dtype, if the image is anything else.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), format="BGR")
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"a PIL image has the size {image.size}")
        if image.mode == "I" and np.asarray(image).min() >= 0 and np.asarray(image).max() < 256:
            raise ValueError(
                "a PIL image of mode I is read as 16 bits, but its values are below 256: use "
                'image.convert("L")'
            )
        try:
            return to_array(image, "BGR")
        except (OSError, ValueError) as error:
            raise ValueError(f"a PIL image of mode {image.mode} cannot be used: {error}") from error
    array: Any = image
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
        array = image.cpu().numpy()
        if array.ndim == 3:
            array = array.transpose(1, 2, 0)
            array = array if input_format == "BGR" else array[:, :, ::-1]
    is_right = (
        isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.size > 0
        and (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (1, 3))
    )
    if not is_right:
        kind = type(image).__name__
        if image is None:
            kind += ", which OpenCV's imread gives for a file that it cannot read"
        if hasattr(image, "dtype"):
            kind += f" of {image.dtype} with the shape {tuple(image.shape)}"
        order = "BGR" if input_format == "BGR" else "RGB"
        raise ValueError(
            f"an image cannot be of type {kind}; it is a path, a PIL image, an array of uint8 "
            "(0 to 255) with the shape (H, W, 3) in BGR order or (H, W) in grey, or a tensor of "
            f"uint8 with the shape (3, H, W) in {order} order or (H, W)"
        )
    array = array.reshape(*array.shape[:2], -1)
    return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


def to_model_input(image: AnyImage, input_format: str) -> np.ndarray:
    """(H, W, 3) uint8 in the order of `input_format`, or (H, W, 1) for "L"; see :func:`to_bgr`."""
    array = to_bgr(image, input_format)
    if input_format != "BGR":
        array = cv2.cvtColor(array, cv2.COLOR_BGR2RGB)  # contiguous, unlike a flipped view
    if input_format == "L":
        array = convert_PIL_to_numpy(Image.fromarray(array), "L")
    return array
