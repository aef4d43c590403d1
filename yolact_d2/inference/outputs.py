"""Where drawings go: image files, a video file, a window."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import cv2
import numpy as np

from ..files import atomic_write, check_writable
from .sources import Frame, ImageFiles, Video

# By suffix. OpenCV's wheels have these encoders on every system.
VIDEO_CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
_ESCAPE = 27

# Takes a frame and the drawing of it, (H, W, 3) uint8, BGR.
Writer = Callable[[Frame, np.ndarray], None]


class WindowClosed(Exception):
    """The user closed the window."""


def open_output(
    source: ImageFiles | Video, output: str | os.PathLike[str] | None
) -> AbstractContextManager[Writer]:
    """Open the output for the drawings of a source, and find errors before work starts.

    Args:
        output: file or folder, see :func:`image_outputs` and :func:`video_output`; None for a
            window.

    Raises:
        ValueError: if nothing can be written or shown there.
    """
    if output is None:
        displays = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not displays:  # Qt would abort the program
            raise ValueError("there is no display to show a window on: name an output")
        return show_in_window(delay=0 if isinstance(source, ImageFiles) else 1)
    output = os.fspath(output)
    if isinstance(source, ImageFiles):
        outputs = image_outputs(source.paths, output)
        for path in outputs.values():
            check_writable(path)
        return write_images(outputs)
    path = video_output(source.name, output)
    check_writable(path)
    return write_video(path, source.fps)


def image_outputs(paths: Sequence[str], output: str) -> dict[str, str]:
    """The file that the drawing of each image is written to.

    Args:
        paths: the images.
        output: an image file, or a folder. In a folder, drawings have the names of their images
            (with the suffix .png if OpenCV cannot write the format of the image).

    Raises:
        ValueError: if a drawing would overwrite an image or another drawing.
    """
    if not os.path.isdir(output) and cv2.haveImageWriter(output):
        if len(paths) > 1:
            raise ValueError(f"{output!r} is one file for {len(paths)} images: name a folder")
        targets = [output]
    else:
        targets = [os.path.join(output, os.path.basename(path)) for path in paths]
        targets = [
            t if cv2.haveImageWriter(t) else os.path.splitext(t)[0] + ".png" for t in targets
        ]
    images = {os.path.realpath(path) for path in paths}
    for target, count in Counter(targets).items():
        if count > 1:
            raise ValueError(f"{count} images would be drawn to {target!r}: draw them separately")
        if os.path.realpath(target) in images:
            raise ValueError(f"{target!r} is one of the images: choose another output")
    return dict(zip(paths, targets))


def video_output(source: str, output: str) -> str:
    """The file that the drawing of a video is written to.

    Args:
        source: path or URL of the video, or the name of a camera.
        output: a video file, or a folder.

    Raises:
        ValueError: if OpenCV cannot write such a file, or it is the video itself.
    """
    suffix = os.path.splitext(output)[1].lower()
    if os.path.isdir(output) or not suffix:
        stem = os.path.splitext(os.path.basename(source.split("?")[0]))[0]
        output = os.path.join(output, (re.sub(r"[^\w.-]+", "_", stem) or "video") + ".mp4")
    elif suffix not in VIDEO_CODECS:
        raise ValueError(
            f"cannot write {output!r}: the suffix of a video is one of {', '.join(VIDEO_CODECS)}"
        )
    if os.path.realpath(output) == os.path.realpath(source):
        raise ValueError(f"{output!r} is the video itself: choose another output")
    return output


@contextmanager
def write_images(outputs: dict[str, str]) -> Iterator[Writer]:
    """Write each drawing to its file, see :func:`image_outputs`."""

    def write(frame: Frame, drawing: np.ndarray) -> None:
        path = outputs[frame.name]
        with atomic_write(path) as partial:
            if not cv2.imwrite(partial, drawing):
                raise OSError(f"OpenCV cannot write {path!r}")

    yield write


@contextmanager
def write_video(path: str, fps: float) -> Iterator[Writer]:
    """Write drawings of one size to a video file, which appears when it is complete.

    Args:
        path: see :func:`video_output`.
        fps: frames per second.
    """
    codec = VIDEO_CODECS[os.path.splitext(path)[1].lower()]
    writer = cv2.VideoWriter()
    size: tuple[int, int] | None = None

    def write(frame: Frame, drawing: np.ndarray) -> None:
        nonlocal size
        if size is None:
            size = drawing.shape[1], drawing.shape[0]
            if not writer.open(partial, cv2.VideoWriter.fourcc(*codec), fps, size):
                raise OSError(f"OpenCV cannot write {path!r} with the codec {codec}")
        if (drawing.shape[1], drawing.shape[0]) != size:  # OpenCV would drop the frame silently
            raise OSError(f"the size of {frame.name} changes at frame {frame.image_id}")
        writer.write(drawing)

    with atomic_write(path) as partial:
        try:
            yield write
        finally:
            writer.release()


@contextmanager
def show_in_window(delay: int) -> Iterator[Writer]:
    """Show drawings in a window.

    Args:
        delay: how long to show each drawing, in milliseconds; 0 waits for a key.

    Raises:
        WindowClosed: by the writer, when the user presses Escape or q.
    """

    def write(frame: Frame, drawing: np.ndarray) -> None:
        cv2.imshow("yolact_d2", drawing)
        if cv2.waitKey(delay) & 0xFF in (_ESCAPE, ord("q")):
            raise WindowClosed

    try:
        yield write
    finally:
        cv2.destroyAllWindows()
