import cv2
import numpy as np
import pytest

from tools.benchmark.images import make_batches, parse_size, read


def test_batches_go_on_until_they_repeat():
    assert make_batches("abc", 1) == [["a"], ["b"], ["c"]]
    assert make_batches("abc", 2) == [["a", "b"], ["c", "a"], ["b", "c"]]
    assert make_batches("ab", 4) == [["a", "b", "a", "b"]]


def test_files_and_generated_images(tmp_path):
    image = read((30, 50, 1))
    assert image.shape == (30, 50, 3) and image.dtype == np.uint8 and image.std() > 10
    assert np.array_equal(image, read((30, 50, 1)))
    assert not np.array_equal(image, read((30, 50, 2)))
    cv2.imwrite(str(tmp_path / "image.png"), image)
    assert np.array_equal(image, read(str(tmp_path / "image.png")))


def test_sizes():
    assert parse_size("640x427") == (427, 640)
    for text in ("640", "640x", "0x427", "640x-1", "axb"):
        with pytest.raises(ValueError, match=f"{text}' should be WIDTHxHEIGHT"):
            parse_size(text)
