"""Files are whole or not there."""

import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from yolact_d2.files import check_writable, replacing, save_figure, save_image


def test_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with replacing(str(path)) as partial:
            with open(partial, "w") as file:
                file.write("half")
            raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    with replacing(str(path)) as partial:
        with open(partial, "w") as file:
            file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_images_and_figures(tmp_path):
    image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    save_image(image, str(tmp_path / "image.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)
    save_figure(Figure(figsize=(2, 1)), str(tmp_path / "figure"))
    with Image.open(tmp_path / "figure") as figure:
        assert figure.format == "PNG" and figure.size == (200, 100)
    assert sorted(os.listdir(tmp_path)) == ["figure", "image.png"]


def test_where_nothing_can_be_written(tmp_path):
    check_writable(str(tmp_path / "file"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "text").write_text("")
    for path in (tmp_path / "missing" / "file", tmp_path / "text" / "file"):
        with pytest.raises(OSError, match=str(path)):
            check_writable(str(path))
        with pytest.raises(OSError, match=str(path)):
            save_image(np.zeros((1, 1, 3), np.uint8), str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_writable(str(tmp_path / "file"))
