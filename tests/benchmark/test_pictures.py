import cv2
import numpy as np
import pytest

from yolact_d2.benchmark.pictures import (
    PictureSet,
    batch_indices,
    distinct_batches,
    find_pictures,
    generate_picture,
    parse_size,
)


def test_generated_pictures():
    pictures = PictureSet("x", size=(60, 90), num_generated=3)
    assert len(pictures) == 3 and pictures.first_size() == (60, 90)
    first, second = pictures.picture(0), pictures.picture(1)
    assert first.shape == (60, 90, 3) and first.dtype == np.uint8
    assert (first == pictures.picture(0)).all() and (first != second).any()
    assert first.std() > 20


def test_generated_pictures_are_smooth_and_textured():
    picture = generate_picture(200, 300, seed=0).astype(float)
    near = np.abs(picture[:, 1:] - picture[:, :-1]).mean()
    far = np.abs(picture[:, 100:] - picture[:, :-100]).mean()
    assert 3 < near < far / 2


def test_files_and_folders(tmp_path):
    (tmp_path / "folder").mkdir()
    colour = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    for name in ("folder/b.png", "folder/a.PNG", "c.png"):
        cv2.imwrite(str(tmp_path / name), colour)
    (tmp_path / "folder" / "notes.txt").write_text("no picture")
    files = find_pictures([str(tmp_path / "c.png"), str(tmp_path / "folder")])
    assert files == tuple(str(tmp_path / n) for n in ("c.png", "folder/a.PNG", "folder/b.png"))
    pictures = PictureSet("input", files=files)
    assert len(pictures) == 3
    assert (pictures.picture(2) == colour).all()


def test_bad_files(tmp_path):
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text.png", "text.png' cannot be read as a picture"),
        ("missing.png", "there is no picture .*missing.png'"),
        ("empty", "empty' has no pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            find_pictures([str(tmp_path / name)])


def test_batches_go_round():
    assert [batch_indices(3, 2, turn) for turn in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]
    assert distinct_batches(3, 2) == [[0, 1], [2, 0], [1, 2]]
    assert distinct_batches(4, 8) == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert distinct_batches(3, 1) == [[0], [1], [2]]


def test_size():
    assert parse_size("640x427") == (427, 640)
    for text in ("640", "x427", "640x", "0x5", "6x-4", "axb"):
        with pytest.raises(ValueError, match=f"'{text}' should be WIDTHxHEIGHT"):
            parse_size(text)
