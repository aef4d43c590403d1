"""Where drawings go: picture files, a video file, a window."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from ..files import atomic_write
from .sources import Frame

# By the ending of the file. OpenCV's wheels have encoders for these on every system.
VIDEO_CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
_ESCAPE = 27


Sink = Callable[[Frame, np.ndarray], None]


class WindowClosed(Exception):
    """The person who looks has seen enough."""


def plan_pictures(paths: Sequence[str], output: str) -> dict[str, str]:
    """The file that each picture's drawing is written to.

    Args:
        paths: of the pictures.
        output: a file, if it has the ending of a picture and is no folder; else a folder, in which
            drawings get the pictures' names (PNG where OpenCV cannot write the picture's format).

    Raises:
        ValueError: if drawings would overwrite each other or a picture.
    """
    if not os.path.isdir(output) and cv2.haveImageWriter(output):
        if len(paths) > 1:
            raise ValueError(
                f"{output!r} is one file, but there are {len(paths)} pictures: name a folder"
            )
        plan = {paths[0]: output}
    else:
        plan = {path: os.path.join(output, _picture_name(path)) for path in paths}
    sources: dict[str, str] = {}
    pictures = {os.path.realpath(path) for path in paths}
    for path, target in plan.items():
        if target in sources:
            raise ValueError(
                f"the drawings of {sources[target]!r} and {path!r} would both be "
                f"{target!r}: draw them one after the other"
            )
        if os.path.realpath(target) in pictures:
            raise ValueError(f"{target!r} is one of the pictures: choose another output")
        sources[target] = path
    return plan


def _picture_name(path: str) -> str:
    name = os.path.basename(path)
    return name if cv2.haveImageWriter(name) else f"{os.path.splitext(name)[0]}.png"


def plan_video(source: str, output: str) -> str:
    """The file that a video's drawing is written to.

    Args:
        source: path of the video, or the name of a camera.
        output: a file, if it has an ending and is no folder; else a folder.

    Raises:
        ValueError: if OpenCV cannot write such files, or it is the video itself.
    """
    ending = os.path.splitext(output)[1].lower()
    if os.path.isdir(output) or not ending:
        stem = os.path.splitext(os.path.basename(source))[0].replace(" ", "_")
        output = os.path.join(output, f"{stem}.mp4")
    elif ending not in VIDEO_CODECS:
        raise ValueError(
            f"cannot write {output!r}: a video must end with one of {', '.join(VIDEO_CODECS)}"
        )
    if os.path.realpath(output) == os.path.realpath(source):
        raise ValueError(f"{output!r} is the video itself: choose another output")
    return output


@contextlib.contextmanager
def picture_files(plan: dict[str, str]) -> Iterator[Sink]:
    """Writes each drawing to its file, see :func:`plan_pictures`."""

    def write(frame: Frame, drawing: np.ndarray) -> None:
        target = plan[frame.name]
        encoded, data = cv2.imencode(os.path.splitext(target)[1], drawing)
        if not encoded:
            raise OSError(f"OpenCV cannot write {target!r}")
        with atomic_write(target) as partial, open(partial, "wb") as file:
            file.write(data.tobytes())

    yield write


@contextlib.contextmanager
def video_file(path: str, fps: float) -> Iterator[Sink]:
    """Writes drawings, all of one size, to a video, which is there once the context is left.

    Args:
        path: see :func:`plan_video`.
        fps: frames per second.
    """
    writer: cv2.VideoWriter | None = None
    size = None

    def write(frame: Frame, drawing: np.ndarray) -> None:
        nonlocal writer, size
        this_size = drawing.shape[1], drawing.shape[0]
        if writer is None:
            codec = VIDEO_CODECS[os.path.splitext(path)[1].lower()]
            size = this_size
            writer = cv2.VideoWriter(partial, cv2.VideoWriter_fourcc(*codec), fps, size)
            if not writer.isOpened():
                raise OSError(f"OpenCV cannot write {path!r} with the codec {codec}")
        if this_size != size:  # OpenCV would leave the frame out and say nothing
            raise ValueError(f"frame {frame.image_id} of {frame.name} is {this_size}, not {size}")
        writer.write(drawing)

    with atomic_write(path) as partial:
        try:
            yield write
        finally:
            if writer is not None:
                writer.release()


def check_display() -> None:
    """
    Raises:
        ValueError: if there is no screen to show windows on, where that can be known. (Where it is
            not known, Qt would end the program.)
    """
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise ValueError("there is no display to show a window on: name an output")


@contextlib.contextmanager
def window(wait: int) -> Iterator[Sink]:
    """Shows drawings in a window, until Escape or q is pressed.

    Args:
        wait: how long each is shown at least, in milliseconds; 0: until a key is pressed.

    Raises (when writing):
        WindowClosed: when it is.
    """

    def write(frame: Frame, drawing: np.ndarray) -> None:
        cv2.imshow("yolact_d2", drawing)
        if cv2.waitKey(wait) & 0xFF in (_ESCAPE, ord("q")):
            raise WindowClosed

    try:
        yield write
    finally:
        cv2.destroyAllWindows()
