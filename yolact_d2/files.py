"""Files that are never half-written: under another name first, then renamed."""

import contextlib
import glob
import os
import secrets
import tempfile
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """The path of a file to write, beside `path`, which takes its place when it is complete (if it
    was written at all); after an error it is removed."""
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{secrets.token_hex(4)}.partial.{name}")
    try:
        yield partial
        if os.path.exists(partial):
            os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def remove_partial_files(folder: str) -> None:
    """Remove what :func:`atomic_write` left there when its process was killed. Nobody else may be
    writing there."""
    for path in glob.glob(os.path.join(glob.escape(folder), ".????????.partial.*")):
        os.remove(path)


def check_writable(path: str) -> None:
    """Make the folder of a file, and check that the file can be written there.

    Raises:
        ValueError: naming the path, if not.
    """
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path!r}: {error.strerror}") from error
    if os.path.isdir(path):
        raise ValueError(f"cannot write {path!r}: it is a folder")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path!r}: it is there and read-only")


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def save_image(image: np.ndarray, path: str) -> None:
    """Write an image, (H, W, 3) uint8, RGB, as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
