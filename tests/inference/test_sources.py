"""Frames from files: which, in which order, and what is said about those that are no frames."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from yolact_d2.inference.sources import DEFAULT_FPS, ImageFiles, Video, find_images, picture_ids

SIZE = (64, 48)  # width, height


@pytest.fixture
def folder(tmp_path):
    """ImageFiles b.png, a.jpg and a text, and c.JPG in a folder inside."""
    (tmp_path / "inner.jpg").mkdir()
    image = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    for name in ("b.png", "a.jpg", "inner.jpg/c.JPG"):
        assert cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def names(paths, folder):
    return [str(path)[len(str(folder)) + 1 :] for path in paths]


@pytest.mark.parametrize(
    "inputs, expected",
    [
        (["b.png", "a.jpg"], ["b.png", "a.jpg"]),
        ([""], ["a.jpg", "b.png"]),
        (["*.png", "", "b.png"], ["b.png", "a.jpg"]),
        (["*"], ["a.jpg", "b.png", "inner.jpg/c.JPG", "notes.txt"]),
        (["**/*.[jJ]*"], ["a.jpg", "inner.jpg/c.JPG"]),
        (["notes.txt"], ["notes.txt"]),
    ],
)
def test_pictures_that_are_found(folder, inputs, expected):
    found = find_images([str(folder / entry) if entry else str(folder) for entry in inputs])
    assert names(found, folder) == expected


def test_a_file_may_look_like_a_glob(folder):
    (folder / "b.png").rename(folder / "b[1].png")
    assert names(find_images([str(folder / "b[1].png")]), folder) == ["b[1].png"]


def test_inputs_without_pictures_are_named(folder):
    (folder / "empty").mkdir()
    for entry, message in (
        ("nowhere.jpg", "there is no file or folder"),
        ("empty", "has no pictures"),
        ("*.gif", "no picture matches"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            find_images([str(folder), str(folder / entry)])
        assert str(folder / entry) in str(error.value)


@pytest.mark.parametrize(
    "paths, ids",
    [
        (["x/000000000139.jpg", "000000000285.png"], [139, 285]),
        (["x/1.jpg", "y/1.jpg"], [0, 1]),
        (["1.jpg", "two.jpg"], [0, 1]),
        ([], []),
    ],
)
def test_image_ids(paths, ids):
    assert picture_ids(paths) == ids


def test_unreadable_pictures_are_left_out_and_recorded(folder):
    whole = cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes()
    (folder / "cut.png").write_bytes(whole[:-40])
    paths = [str(folder / name) for name in ("notes.txt", "b.png", "cut.png", "gone.png", "a.jpg")]
    pictures = ImageFiles(paths)
    frames = list(pictures)
    assert len(pictures) == 5
    assert [(f.image_id, f.name) for f in frames] == [(1, paths[1]), (4, paths[4])]
    assert [path for path, _ in pictures.failed] == [paths[0], paths[2], paths[3]]
    assert all(reason for _, reason in pictures.failed)
    assert frames[0].image.dtype == np.uint8
    assert (frames[0].image == (10, 20, 30)).all()  # BGR


def write_video(path, count, fps=12.5, codec="MJPG"):
    """Frame i has the brightness 20 * i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, SIZE)
    for i in range(count):
        writer.write(np.full((*SIZE[::-1], 3), 20 * i, np.uint8))
    writer.release()


@pytest.mark.parametrize("name, codec", [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_frames_of_a_video(tmp_path, name, codec):
    path = str(tmp_path / name)
    write_video(path, 8, codec=codec)
    video = Video(path)
    assert (len(video), video.fps, video.is_camera) == (8, 12.5, False)
    frames = list(video)
    assert [frame.image_id for frame in frames] == list(range(8))
    assert [round(frame.image.mean() / 20) for frame in frames] == list(range(8))
    assert {frame.name for frame in frames} == {path} and not video.failed


def test_what_is_no_video_is_named(tmp_path):
    write_video(tmp_path / "zero.avi", 0)
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    for name, message in (
        ("zero.avi", "has no frames"),
        ("zero.mp4", "cannot be read"),
        ("text.mp4", "cannot be read"),
        ("gone.mp4", "there is no video file"),
        (".", "there is no video file"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            Video(str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)


def test_video_that_ends_too_early_is_recorded(tmp_path):
    write_video(tmp_path / "whole.mkv", 12, codec="mp4v")
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    video = Video(str(tmp_path / "cut.mkv"))
    assert 1 <= len(list(video)) < 12
    assert video.failed[0][0] == str(tmp_path / "cut.mkv")
    assert "of 12 frames" in video.failed[0][1]


def test_camera_that_is_not_there():
    with pytest.raises(ValueError, match="camera 987 cannot be read"):
        Video(987)


@pytest.mark.parametrize("fps", [0.0, float("nan"), 90000.0])
def test_unknown_rate(tmp_path, monkeypatch, fps):
    write_video(tmp_path / "a.avi", 2)
    capture = cv2.VideoCapture(str(tmp_path / "a.avi"))
    rateless = SimpleNamespace(read=capture.read, get=lambda key: fps)
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: rateless)
    assert Video(str(tmp_path / "a.avi")).fps == DEFAULT_FPS
