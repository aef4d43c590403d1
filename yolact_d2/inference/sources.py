"""Where frames come from: image files, a video, a camera."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..data.images import UnreadableImage, read_image

# The files of a folder that are read as images. A file given by name may have any suffix.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# For cameras, and for files without a plausible rate: OpenCV may return 0 or the time base.
DEFAULT_FPS = 30.0
MAX_FPS = 1000.0


class Frame(NamedTuple):
    image_id: int
    """Of an image file, see :func:`image_ids`; in a video, the number of the frame from 0."""
    name: str
    """Path of the image file, or name of the video."""
    image: np.ndarray
    """(H, W, 3) uint8, BGR."""


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The image files that files, folders and globs stand for, without duplicates.

    Args:
        inputs: in order. The images of a folder or glob are sorted by name. Subfolders are not
            searched, except by a glob with "**".

    Raises:
        ValueError: naming the first input without images.
    """
    found = []
    for entry in [os.fspath(given) for given in inputs]:
        images = []
        for path in [entry] if os.path.exists(entry) else sorted(glob.glob(entry, recursive=True)):
            images += _images_in(path) if os.path.isdir(path) else [path]
        if not images:
            raise ValueError(f"found no images at {entry!r}")
        found += images
    return list(dict.fromkeys(found))


def _images_in(folder: str) -> list[str]:
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return [p for p in paths if p.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(p)]


def image_ids(paths: Sequence[str]) -> list[int]:
    """The ids of image files in results: the numbers in their names, as in COCO, if every name is
    a number and all numbers differ; else 0, 1, 2, ..."""
    stems = [Path(path).stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(len(paths)))


class ImageFiles:
    """Frames of image files. Files that cannot be read are skipped.

    Attributes:
        failed: (path, reason) of the files skipped in the last iteration.
    """

    is_live = False

    def __init__(self, paths: Sequence[str | os.PathLike[str]]):
        self.paths = [os.fspath(path) for path in paths]
        self.failed: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        self.failed.clear()
        for image_id, path in zip(image_ids(self.paths), self.paths):
            try:
                image = read_image(path, format="BGR")
            except UnreadableImage as error:
                self.failed.append((path, str(error).removeprefix(f"{path} ")))
                continue
            yield Frame(image_id, path, image)


class Video:
    """Frames of whatever OpenCV reads as a video: a file, a URL (http, rtsp), a camera.

    Each iteration opens a file or URL again and starts at its beginning; a camera continues. There
    can be one iteration at a time. As a context manager it releases the file or device at the end.

    Attributes:
        name: the path or URL, or "camera 0" for a camera number.
        fps: frames per second.
        is_camera: whether the source is a camera number or a device such as /dev/video0.
        is_live: whether the source has no end: a camera, or a URL of unknown length.
        failed: (name, reason), if the last iteration ended too early.
    """

    def __init__(self, source: str | os.PathLike[str] | int):
        """
        Args:
            source: a path, a URL, or the number of a camera.

        Raises:
            ValueError: if no frame can be read.
        """
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.name = source if isinstance(source, str) else f"camera {source}"
        self.is_camera = isinstance(source, int) or Path(source).is_char_device()
        self.failed: list[tuple[str, str]] = []
        self._source = source
        self._capture = cv2.VideoCapture(source)
        # OpenCV opens some files that it cannot read.
        is_readable, _ = self._capture.read()
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS
        count = 0 if self.is_camera else self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._num_frames = max(int(count), 0)
        is_path = not self.is_camera and "://" not in self.name
        self.is_live = self.is_camera or not (is_path or self._num_frames)
        if not (is_readable and self.is_camera):
            self._capture.release()
        if not is_readable:
            is_missing = is_path and not os.path.exists(self.name)
            reason = "there is no such file" if is_missing else "OpenCV reads no frames from it"
            raise ValueError(f"{self.name}: {reason}")

    def __len__(self) -> int:
        """Number of frames according to the file; 0 if it is unknown."""
        return self._num_frames

    def __iter__(self) -> Iterator[Frame]:
        self.failed.clear()
        if not self.is_camera:
            self._capture.open(self._source)
        number = 0
        while (image := self._capture.read()[1]) is not None:
            yield Frame(number, self.name, image)
            number += 1
        # Some formats do not store the number of frames, and OpenCV estimates it.
        if number < max(0.95 * len(self) - 1, 1):
            self.failed.append((self.name, f"it ends after {number} of {len(self)} frames"))

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self._capture.release()
