"""Where frames come from: picture files, a video file, a camera."""

import glob
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..data.images import UnreadableImage, read_image

# What of a folder is taken for a picture. A file that is named itself may have any name.
PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of cameras, and of files that do not say.
DEFAULT_FPS = 30.0
# More is the time base of a file that does not know its rate.
MAX_FPS = 1000.0


class Frame(NamedTuple):
    image_id: int
    """In results: see :func:`picture_ids`; of videos the number of the frame, from 0."""
    name: str
    """The picture's file, or the video."""
    image: np.ndarray
    """(H, W, 3) uint8, BGR."""


def find_images(inputs: Sequence[str]) -> list[str]:
    """The picture files that are meant by files, folders and globs, each once.

    Args:
        inputs: taken in their order. Of a folder, or of what a glob matches, the pictures are
            sorted by name; folders in folders are not entered, unless the glob has "**".

    Raises:
        ValueError: naming the input that is missing or has no pictures.
    """
    found = []
    for entry in inputs:
        if os.path.isfile(entry):
            pictures = [entry]
        elif os.path.isdir(entry):
            pictures = _pictures_in(entry)
            if not pictures:
                raise ValueError(
                    f"the folder {entry!r} has no pictures ({', '.join(PICTURE_SUFFIXES)})"
                )
        elif glob.has_magic(entry):
            pictures = []
            for path in sorted(glob.glob(entry, recursive=True)):
                pictures += _pictures_in(path) if os.path.isdir(path) else [path]
            if not pictures:
                raise ValueError(f"no picture matches {entry!r}")
        else:
            raise ValueError(f"there is no file or folder {entry!r}")
        found += pictures
    return list(dict.fromkeys(found))


def _pictures_in(folder: str) -> list[str]:
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return [p for p in paths if p.lower().endswith(PICTURE_SUFFIXES) and os.path.isfile(p)]


def picture_ids(paths: Sequence[str]) -> list[int]:
    """The image ids of picture files: the numbers that they are called by, as COCO's are, if all
    are called by numbers, and by different ones; else their places, from 0."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(len(paths)))


class ImageFiles:
    """Picture files as frames. One that cannot be read is left out, and recorded.

    Attributes:
        failed: (path, reason) of those that could not be read so far.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self.failed: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for image_id, path in zip(picture_ids(self.paths), self.paths):
            try:
                image = read_image(path, format="BGR")
            except UnreadableImage as error:
                self.failed.append((path, str(error)[len(path) + 1 :]))
                continue
            yield Frame(image_id, path, image)


class Video:
    """The frames of a video file or of a camera, once.

    Attributes:
        fps: frames per second.
        failed: (path, reason), if the file ended too early.
    """

    def __init__(self, source: str | int):
        """
        Args:
            source: a path, or the number of a camera.

        Raises:
            ValueError: if it cannot be opened or has no frames.
        """
        self.is_camera = isinstance(source, int)
        self.name = f"camera {source}" if self.is_camera else source
        if not self.is_camera and not os.path.isfile(source):
            raise ValueError(f"there is no video file {source!r}")
        self.failed: list[tuple[str, str]] = []
        self._capture = cv2.VideoCapture(source)
        # Only reading tells a video from what merely opens.
        there, self._first = self._capture.read()
        if not there:
            self._capture.release()
            hint = "" if self.is_camera else " as a video, or has no frames"
            raise ValueError(f"{self.name} cannot be read{hint}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS

    def __len__(self) -> int:
        """How many frames the file says it has; 0 if it does not say."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        return 0 if self.is_camera else max(int(count), 0)

    def __iter__(self) -> Iterator[Frame]:
        number, image, expected = 0, self._first, len(self)
        while image is not None:
            yield Frame(number, self.name, image)
            number += 1
            _, image = self._capture.read()
        # Counts of files that do not store them are estimates, off by a little.
        if number < 0.95 * expected - 1:
            self.failed.append((self.name, f"it ends after {number} of {expected} frames"))
