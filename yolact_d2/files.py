"""Write files atomically: a reader sees the old file or the complete new one."""

import contextlib
import glob
import os
import secrets
import tempfile
from collections.abc import Iterator

import numpy as np
from PIL import Image


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """Write a file atomically.

    Yields the path of a temporary file in the same folder. When the context ends, the temporary
    file replaces `path`; after an error it is removed, and `path` stays as it was. If nothing was
    written, nothing happens. For local files only: other file systems have no atomic rename.
    """
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
    """Remove the temporary files of :func:`atomic_write` that killed processes left in a folder.

    No other process may be writing there.
    """
    for path in glob.glob(os.path.join(glob.escape(folder), ".????????.partial.*")):
        os.remove(path)


def check_writable(path: str) -> None:
    """Create the folder of a file, and check that the file can be written.

    Raises:
        ValueError: naming the path, if it cannot.
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
        raise ValueError(f"cannot write {path!r}: it is read-only")


def save_image(image: np.ndarray, path: str) -> None:
    """Write an image, (H, W, 3) uint8, RGB, as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
