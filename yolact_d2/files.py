"""Files that are never half-written: under another name first, then renamed."""

import os
from contextlib import contextmanager
from typing import Iterator

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Give the name to write to; rename the file in the end, or remove it after an error."""
    partial = f"{path}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def check_writable(path: str) -> None:
    """Find out before work starts whether a file can be written.

    Raises:
        OSError: if it cannot.
    """
    partial = f"{path}.partial"
    with open(partial, "w"):
        pass
    os.remove(partial)


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def save_image(image: np.ndarray, path: str) -> None:
    """Write an image, (H, W, 3) uint8, RGB, as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with replacing(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
