"""The pictures that all models see."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Grid widths, in pixels, of the noise in a generated picture: from texture to large areas.
_NOISE_CELLS = (4, 16, 64, 256)


@dataclass(frozen=True)
class PictureSet:
    """Pictures that are measured together: files, or generated ones of one size.

    They are made when they are asked for, so that a process that measures memory holds only those
    that it works on.
    """

    name: str
    files: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    """(height, width) of generated pictures."""
    num_generated: int = 0

    def __len__(self) -> int:
        return len(self.files) or self.num_generated

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, BGR."""
        if self.files:
            return read_picture(self.files[index])
        return generate_picture(*self.size, seed=index)

    def first_size(self) -> tuple[int, int]:
        """(height, width) of the first picture."""
        return self.picture(0).shape[:2]


def batch_indices(num_pictures: int, batch_size: int, turn: int) -> list[int]:
    """The pictures of a batch: the next ones, from the start again after the last."""
    return [(turn * batch_size + i) % num_pictures for i in range(batch_size)]


def distinct_batches(num_pictures: int, batch_size: int) -> list[list[int]]:
    """All batches that :func:`batch_indices` ever gives."""
    batches = []
    while (batch := batch_indices(num_pictures, batch_size, len(batches))) not in batches:
        batches.append(batch)
    return batches


def generate_picture(height: int, width: int, seed: int) -> np.ndarray:
    """Coloured noise of many scales, somewhat like a photograph: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cell in _NOISE_CELLS:
        nodes = rng.normal(size=(height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        picture += cv2.resize(nodes, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(128 + 32 * picture, 0, 255).astype(np.uint8)


def read_picture(path: str) -> np.ndarray:
    """(H, W, 3) uint8, BGR.

    Raises:
        ValueError: naming the file.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no picture {path!r}")
    picture = cv2.imread(path)
    if picture is None:
        raise ValueError(f"{path!r} cannot be read as a picture")
    return picture


def find_pictures(paths: Sequence[str]) -> tuple[str, ...]:
    """Picture files, and those in folders. All are read once, to see that they can be.

    Raises:
        ValueError: naming a folder without pictures or a file that is none.
    """
    files = tuple(file for path in paths for file in _files_of(path))
    for file in files:
        read_picture(file)
    return files


def _files_of(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    names = sorted(n for n in os.listdir(path) if n.lower().endswith(_SUFFIXES))
    if not names:
        raise ValueError(f"the folder {path!r} has no pictures ({', '.join(_SUFFIXES)})")
    yield from (os.path.join(path, name) for name in names)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT".

    Raises:
        ValueError: if it is anything else.
    """
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"the size {text!r} should be WIDTHxHEIGHT, such as 640x427")
    return int(height), int(width)
