"""Files are complete or do not exist."""

import os

import numpy as np
import pytest
from PIL import Image

from yolact_d2.files import atomic_write, check_writable, remove_partial_files, save_image


def test_atomic_write_replaces_the_file_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(str(path)) as partial:
        with open(partial, "w") as file:
            file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(str(path)) as partial:
        with open(partial, "w") as file:
            file.write("ne")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "a.pth").write_text("")
    with atomic_write(str(folder / "a.pth")) as partial:
        open(partial, "w").close()
        remove_partial_files(str(folder))
        assert os.listdir(folder) == ["a.pth"]


def test_check_writable_creates_the_folder_only(tmp_path):
    check_writable(str(tmp_path / "new" / "folder" / "a.png"))
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_check_writable_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "a.png", "/proc/nowhere/a.png"):
        with pytest.raises(ValueError, match="cannot write") as error:
            check_writable(str(path))
        assert repr(str(path)) in str(error.value)


def test_images_are_saved_as_png(tmp_path):
    image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    save_image(image, str(tmp_path / "image.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), image)
    with pytest.raises(OSError, match=str(tmp_path / "missing")):
        save_image(image, str(tmp_path / "missing" / "a.png"))
    assert os.listdir(tmp_path) == ["image.png"]
