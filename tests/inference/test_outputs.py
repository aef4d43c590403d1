"""Where drawings go."""

import os

import cv2
import numpy as np
import pytest

from yolact_d2.inference.outputs import (
    check_display,
    picture_files,
    plan_pictures,
    plan_video,
    video_file,
)
from yolact_d2.inference.sources import Frame, Video


def frame(number=0, name="a.png"):
    return Frame(number, name, np.zeros((2, 2, 3), np.uint8))


def drawing(brightness=0, size=(64, 48)):
    return np.full((size[1], size[0], 3), brightness, np.uint8)


def test_plan_of_pictures(tmp_path):
    assert plan_pictures(["x/a.jpg"], "out.png") == {"x/a.jpg": "out.png"}
    assert plan_pictures(["x/a.jpg", "b.png"], "out") == {
        "x/a.jpg": os.path.join("out", "a.jpg"),
        "b.png": os.path.join("out", "b.png"),
    }
    # What OpenCV cannot write becomes PNG.
    assert plan_pictures(["a.heic"], "out") == {"a.heic": os.path.join("out", "a.png")}
    (tmp_path / "folder.png").mkdir()
    folder = str(tmp_path / "folder.png")
    assert plan_pictures(["a.jpg"], folder) == {"a.jpg": os.path.join(folder, "a.jpg")}


@pytest.mark.parametrize(
    "paths, output, message",
    [
        (["a.jpg", "b.jpg"], "out.png", "one file, but there are 2 pictures"),
        (["x/a.jpg", "y/a.jpg"], "out", "'x/a.jpg' and 'y/a.jpg' would both be"),
        (["x/a.jpg"], "x", "is one of the pictures"),
        (["x/a.jpg"], "x/../x/a.jpg", "is one of the pictures"),
    ],
)
def test_drawings_that_would_overwrite_are_refused(paths, output, message):
    with pytest.raises(ValueError, match=message):
        plan_pictures(paths, output)


def test_plan_of_videos(tmp_path):
    assert plan_video("x/a.mkv", "out.avi") == "out.avi"
    assert plan_video("x/a.mkv", "out") == os.path.join("out", "a.mp4")
    assert plan_video("camera 0", str(tmp_path)) == str(tmp_path / "camera_0.mp4")
    with pytest.raises(ValueError, match="'out.gif'.*end with one of .avi, .mkv, .mov, .mp4"):
        plan_video("a.mkv", "out.gif")
    with pytest.raises(ValueError, match="is the video itself"):
        plan_video("x/a.mp4", "x")


def test_pictures_are_written(tmp_path):
    with picture_files({"a.png": str(tmp_path / "b.png")}) as write:
        write(frame(), drawing(77))
    assert os.listdir(tmp_path) == ["b.png"]
    assert (cv2.imread(str(tmp_path / "b.png")) == drawing(77)).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.mov"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_video_has_every_frame_in_order(tmp_path, name, size):
    path = tmp_path / name
    with video_file(str(path), fps=12.5) as write:
        for i in range(6):
            write(frame(i), drawing(40 * i, size))
            assert not path.exists()
    assert os.listdir(tmp_path) == [name]
    video = Video(str(path))
    assert video.fps == 12.5
    frames = [f.image for f in video]
    assert [round(image.mean() / 40) for image in frames] == list(range(6))
    # An encoder may leave out an odd row or column.
    assert frames[0].shape[0] in (size[1], size[1] - size[1] % 2)
    assert frames[0].shape[1] in (size[0], size[0] - size[0] % 2)


def test_interrupted_video_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), video_file(str(tmp_path / "a.mp4"), 10) as write:
        write(frame(), drawing())
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_video_without_frames_is_none(tmp_path):
    with video_file(str(tmp_path / "a.mp4"), 10):
        pass
    assert os.listdir(tmp_path) == []


def test_frame_of_another_size_is_named(tmp_path):
    with pytest.raises(ValueError, match="frame 1 of a.avi"):
        with video_file(str(tmp_path / "a.avi"), 10) as write:
            write(frame(0, "a.avi"), drawing())
            write(frame(1, "a.avi"), drawing(size=(64, 50)))
    assert os.listdir(tmp_path) == []


def test_display(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    check_display()
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no display"):
        check_display()
