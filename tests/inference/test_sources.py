"""Image files and videos as frames."""

import functools
import http.server
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from videos import Camera, numbers, write_video

from yolact_d2.inference.sources import DEFAULT_FPS, ImageFiles, Video, find_images, image_ids


@pytest.fixture
def folder(tmp_path):
    """Images b.png and a.jpg, a text file, and c.JPG in the subfolder inner.jpg."""
    (tmp_path / "inner.jpg").mkdir()
    image = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    for name in ("b.png", "a.jpg", "inner.jpg/c.JPG"):
        assert cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize(
    "inputs, expected",
    [
        (["b.png", "a.jpg"], ["b.png", "a.jpg"]),
        (["."], ["./a.jpg", "./b.png"]),
        (["*.png", "b.png"], ["b.png"]),
        (["*"], ["a.jpg", "b.png", "inner.jpg/c.JPG", "notes.txt"]),
        (["**/*.[jJ][pP][gG]"], ["a.jpg", "inner.jpg/c.JPG"]),
        (["notes.txt"], ["notes.txt"]),
        (["d[1].png"], ["d[1].png"]),  # a file whose name looks like a glob
    ],
)
def test_images_found_for_files_folders_and_globs(folder, monkeypatch, inputs, expected):
    (folder / "d[1].png").write_text("") if "d[1].png" in inputs else None
    monkeypatch.chdir(folder)
    assert find_images(inputs) == find_images(list(map(Path, inputs))) == expected


def test_inputs_without_images_are_errors(folder):
    (folder / "empty").mkdir()
    for name in ("missing.jpg", "empty", "*.gif"):
        with pytest.raises(ValueError, match="found no images at") as error:
            find_images([str(folder), str(folder / name)])
        assert str(folder / name) in str(error.value)


def test_image_ids_are_the_numbers_in_the_names():
    assert image_ids(["x/000000000139.jpg", "000000000285.png"]) == [139, 285]
    assert image_ids(["x/1.jpg", "y/1.jpg"]) == [0, 1]
    assert image_ids(["1.jpg", "two.jpg"]) == [0, 1]
    assert image_ids([]) == []


def test_unreadable_images_are_skipped_and_reported(folder):
    complete = cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes()
    (folder / "cut.png").write_bytes(complete[:-40])
    names = ("notes.txt", "b.png", "cut.png", "missing.png", "a.jpg")
    paths = [str(folder / name) for name in names]
    images = ImageFiles(list(map(Path, paths)))
    for _ in range(2):
        frames = list(images)
        assert [(frame.image_id, frame.name) for frame in frames] == [(1, paths[1]), (4, paths[4])]
        assert [path for path, _ in images.failed] == [paths[0], paths[2], paths[3]]
    assert images.failed[2][1] == "does not exist"
    assert len(images) == 5
    assert frames[0].image.dtype == np.uint8
    assert (frames[0].image == (10, 20, 30)).all()  # BGR


@pytest.mark.parametrize("name, codec", [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_video_files_can_be_read_twice(tmp_path, name, codec):
    path = write_video(tmp_path / name, 8, codec, fps=12.5)
    with Video(tmp_path / name) as video:
        assert (len(video), video.fps, video.is_live) == (8, 12.5, False)
        next(iter(video))  # an iteration may be left early
        for _ in range(2):
            frames = list(video)
            assert [frame.image_id for frame in frames] == list(range(8))
            assert numbers(frame.image for frame in frames) == list(range(8))
            assert {frame.name for frame in frames} == {path} and not video.failed


def test_videos_are_read_from_urls(tmp_path, monkeypatch):
    write_video(tmp_path / "a.avi", 5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Video(f"{url}/a.avi") as video:
            assert (len(video), video.name, video.is_live) == (5, f"{url}/a.avi", False)
            for _ in range(2):
                assert numbers(frame.image for frame in video) == list(range(5))
        with pytest.raises(ValueError, match=f"{url}/b.avi: OpenCV reads no frames"):
            Video(f"{url}/b.avi")
        server.shutdown()


@pytest.mark.parametrize("source, name", [(1, "camera 1"), ("/dev/null", "/dev/null")])
def test_cameras_continue_and_are_released(monkeypatch, source, name):
    captures = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda s: captures.append(Camera()) or captures[-1])
    with Video(source) as video:
        assert (len(video), video.fps, video.name, video.is_live) == (0, 25, name, True)
        first = [frame.image.max() for frame, _ in zip(video, range(3))]
        second = [frame.image.max() for frame, _ in zip(video, range(3))]
        assert first[0] < first[1] < first[2] < second[0]
        assert captures[0].is_open
    assert len(captures) == 1 and not captures[0].is_open


def test_stream_of_unknown_length_and_frame_rate(monkeypatch):
    for fps in (0.0, float("nan"), 90000.0):
        monkeypatch.setattr(cv2, "VideoCapture", lambda source, fps=fps: Camera(-1.9e14, fps))
        video = Video("rtsp://10.0.0.1/stream")
        assert (len(video), video.is_live, video.is_camera) == (0, True, False)
        assert video.fps == DEFAULT_FPS


def test_unreadable_videos_are_errors(tmp_path):
    write_video(tmp_path / "no_frames.avi", 0)
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("no_frames.avi", "text.mp4", "."):
        with pytest.raises(ValueError, match="OpenCV reads no frames") as error:
            Video(str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ValueError, match="missing.mp4: there is no such file"):
        Video("missing.mp4")
    with pytest.raises(ValueError, match="camera 987: OpenCV reads no frames"):
        Video(987)


def test_truncated_video_is_reported(tmp_path):
    path = tmp_path / "a.mkv"
    data = open(write_video(path, 12, "mp4v"), "rb").read()
    path.write_bytes(data[: len(data) // 2])
    video = Video(str(path))
    count = len(list(video))
    assert 1 <= count < 12
    assert video.failed == [(str(path), f"it ends after {count} of 12 frames")]
