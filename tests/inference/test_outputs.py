"""Files and windows that drawings go to."""

import os

import cv2
import numpy as np
import pytest
from videos import HEIGHT, WIDTH, numbers, read_video

from yolact_d2.inference.outputs import image_outputs, video_output, write_images, write_video
from yolact_d2.inference.sources import Frame


def frame(number=0, name="a.png"):
    return Frame(number, name, np.zeros((2, 2, 3), np.uint8))


def drawing(brightness=0, size=(WIDTH, HEIGHT)):
    return np.full((size[1], size[0], 3), brightness, np.uint8)


def test_outputs_of_images(tmp_path):
    assert image_outputs(["x/a.jpg"], "out.png") == {"x/a.jpg": "out.png"}
    assert image_outputs(["x/a.jpg", "b.png"], "out") == {
        "x/a.jpg": "out/a.jpg",
        "b.png": "out/b.png",
    }
    # OpenCV does not write this format.
    assert image_outputs(["a.heic"], "out") == {"a.heic": "out/a.png"}
    (tmp_path / "folder.png").mkdir()
    folder = str(tmp_path / "folder.png")
    assert image_outputs(["a.jpg"], folder) == {"a.jpg": f"{folder}/a.jpg"}


def test_drawings_never_overwrite_images_or_each_other():
    for paths, output, message in (
        (["a.jpg", "b.jpg"], "out.png", "'out.png' is one file for 2 images"),
        (["x/a.jpg", "y/a.jpg"], "out", "2 images would be drawn to 'out/a.jpg'"),
        (["x/a.jpg"], "x", "'x/a.jpg' is one of the images"),
        (["x/a.jpg"], "x/../x/a.jpg", "is one of the images"),
    ):
        with pytest.raises(ValueError, match=message):
            image_outputs(paths, output)


def test_output_of_a_video(tmp_path):
    assert video_output("x/a.mkv", "out.avi") == "out.avi"
    assert video_output("x/a.mkv", "out") == os.path.join("out", "a.mp4")
    assert video_output("camera 0", str(tmp_path)) == str(tmp_path / "camera_0.mp4")
    assert video_output("http://host/a b.avi?key=x/y", "out") == os.path.join("out", "a_b.mp4")
    with pytest.raises(ValueError, match="'out.gif'.* one of .avi, .mkv, .mov, .mp4"):
        video_output("a.mkv", "out.gif")
    with pytest.raises(ValueError, match="is the video itself"):
        video_output("x/a.mp4", "x")


def test_images_are_written(tmp_path):
    with write_images({"a.png": str(tmp_path / "b.png")}) as write:
        write(frame(), drawing(77))
    assert os.listdir(tmp_path) == ["b.png"]
    assert (cv2.imread(str(tmp_path / "b.png")) == drawing(77)).all()
    with write_images({"a.png": str(tmp_path / "missing" / "b.png")}) as write:
        with pytest.raises(OSError, match="OpenCV cannot write"):
            write(frame(), drawing())


def test_videos_have_every_frame_in_order(tmp_path):
    for name in ("a.mp4", "a.avi", "a.mkv", "a.mov"):
        for size in ((64, 48), (63, 47)):
            path = tmp_path / name
            with write_video(str(path), fps=12.5) as write:
                for i in range(6):
                    write(frame(i), drawing(20 * i, size))
                assert not path.exists()
            assert os.listdir(tmp_path) == [name]
            assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 12.5
            frames = read_video(path)
            assert numbers(frames) == list(range(6))
            # An encoder may drop an odd row or column.
            assert frames[0].shape[0] in (size[1], size[1] - size[1] % 2)
            assert frames[0].shape[1] in (size[0], size[0] - size[0] % 2)
            path.unlink()


def test_interrupted_or_empty_videos_leave_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_video(str(tmp_path / "a.mp4"), 10) as write:
        write(frame(), drawing())
        raise KeyboardInterrupt
    with write_video(str(tmp_path / "b.mp4"), 10):
        pass
    with pytest.raises(OSError, match="changes at frame 1"):
        with write_video(str(tmp_path / "c.mp4"), 10) as write:
            write(frame(0), drawing(0, (64, 48)))
            write(frame(1), drawing(0, (48, 64)))
    assert os.listdir(tmp_path) == []
