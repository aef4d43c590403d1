"""Files are whole or not there."""

import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from yolact_d2.files import check_writable, save_figure, save_image, atomic_write


def test_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(str(path)) as partial:
        with open(partial, "w") as file:
            file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_interrupted_file_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(str(path)) as partial:
        with open(partial, "w") as file:
            file.write("ne")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    check_writable(str(tmp_path / "new" / "folder" / "a.png"))
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_not_writable_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "a.png", "/proc/nowhere/a.png"):
        with pytest.raises(ValueError, match="cannot write") as error:
            check_writable(str(path))
        assert repr(str(path)) in str(error.value)


def test_images_and_figures(tmp_path):
    image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    save_image(image, str(tmp_path / "image.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)
    save_figure(Figure(figsize=(2, 1)), str(tmp_path / "figure"))
    with Image.open(tmp_path / "figure") as figure:
        assert figure.format == "PNG" and figure.size == (200, 100)
    assert sorted(os.listdir(tmp_path)) == ["figure", "image.png"]


def test_picture_where_nothing_can_be_written(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path / "missing")):
        save_image(np.zeros((1, 1, 3), np.uint8), str(tmp_path / "missing" / "a.png"))
