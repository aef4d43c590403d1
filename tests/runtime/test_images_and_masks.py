"""The runtime's image files, channels, masks and drawings, against Pillow, PyTorch and numbers."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from torch.nn import functional as F

from yolact_d2 import data
from yolact_runtime import Detections
from yolact_runtime.drawing import draw
from yolact_runtime.images import (
    read_image,
    resize_antialiased,
    resize_bilinear,
    to_channels,
    write_image,
)
from yolact_runtime.masks import paste_masks


@pytest.fixture
def picture():
    """Smooth and noisy parts."""
    rng = np.random.default_rng(0)
    image = np.add.outer(np.arange(37) * 3, np.arange(53) * 2)[..., None] + [0, 60, 110]
    image[10:20] = rng.integers(0, 256, (10, 53, 3))
    return (image % 256).astype(np.uint8)


def test_image_files_are_read_as_the_model_reads_them(picture, tmp_path):
    exif = Image.Exif()
    exif[ExifTag.Orientation] = 6
    deep = np.add.outer(np.arange(40), np.arange(50) * 1000).astype(np.uint16)
    alpha = np.full((*picture.shape[:2], 1), 128, np.uint8)
    for name, image, shape in (
        ("a.png", picture, (53, 37, 3)),
        ("a.jpg", picture, (53, 37, 3)),
        ("alpha.png", np.dstack([picture, alpha]), (53, 37, 3)),
        ("grey.png", picture[..., 0], (53, 37, 3)),
        ("deep.png", deep, (50, 40, 3)),
    ):
        Image.fromarray(image).save(tmp_path / name, exif=exif)
        got = read_image(tmp_path / name)
        assert got.shape == shape
        assert np.array_equal(got, data.read_image(str(tmp_path / name), "BGR"))


def test_written_files_are_read_back(picture, tmp_path):
    write_image(str(tmp_path / "ä.png"), picture)
    assert np.array_equal(read_image(tmp_path / "ä.png"), picture)


def test_files_that_are_no_images_are_named(tmp_path, monkeypatch):
    for name, text in (("text.png", "text"), ("empty.png", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-python"):
        read_image(tmp_path / "text.png")


def test_channels(picture):
    assert np.array_equal(to_channels(picture, "BGR"), picture)
    assert np.array_equal(to_channels(picture, "RGB"), picture[:, :, ::-1])
    grey = np.asarray(Image.fromarray(picture[:, :, ::-1].copy()).convert("L"))
    assert np.array_equal(to_channels(picture, "L")[..., 0], grey)
    for image in (grey, grey[..., None]):
        assert np.array_equal(to_channels(image, "BGR"), np.repeat(grey[..., None], 3, axis=2))
    for wrong in (None, picture[:, :, :2], picture.astype(float), picture[:0], picture[0, 0]):
        with pytest.raises(ValueError, match="an image"):
            to_channels(wrong, "BGR")
    with pytest.raises(ValueError, match="not 4: pass image.*:3"):
        to_channels(np.dstack([picture, grey]), "BGR")


def test_resize_equals_pytorch(picture):
    image = picture.astype(np.float32)
    for size in ((64, 96), (20, 30), (37, 53), (1, 1)):
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = F.interpolate(tensor, size=size, mode="bilinear")[0].permute(1, 2, 0)
        np.testing.assert_allclose(resize_bilinear(image, size), expected, atol=1e-3)


def test_antialiased_resize_equals_pillow(picture):
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
    for size in ((64, 96), (20, 30), (12, 17), (37, 53), (1, 1)):
        for image, least in ((noise, 0.99), (picture, 0.85)):  # the ramp has many halves
            expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))
            got = resize_antialiased(image.astype(np.float32), size)
            assert np.abs(got - expected).max() <= 1 and (got == expected).mean() > least


def test_masks_equal_pytorch():
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 17, 23), np.float32)
    for mask in masks[:5]:  # the last one stays empty
        y, x = rng.integers(0, 12, 2)
        mask[y : y + 5, x : x + 9] = rng.random((5, min(9, 23 - x)))
    for size, whole in (((100, 90), (100, 90)), ((60, 40), (68, 92)), ((9, 11), (9, 11))):
        expected = F.interpolate(torch.from_numpy(masks)[None], size=whole, mode="bilinear")[0]
        expected = expected[:, : size[0], : size[1]].numpy()
        got = paste_masks(masks, size, whole, 0.5)
        sure = np.abs(expected - 0.5) > 1e-5
        assert np.array_equal(got[sure], expected[sure] > 0.5) and got.any()


def test_drawings():
    image = np.full((60, 80), 100, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 30:50, 20:60] = True
    masks[1, 30:50, 50:70] = True
    boxes = np.array([[10, 5, 70, 55], [40, 20, 78, 58]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8]), np.array([0, 1]), masks)
    drawn = draw(image[..., None], found, [])
    assert drawn.shape == (60, 80, 3) and (image == 100).all()
    # Hues 0 and 0.618 with saturation 0.9, halfway to grey.
    first, second = [177.5, 62.75, 62.75], [62.75, 96.3, 177.5]
    assert np.abs(drawn[40, 30] - first).max() < 1.5
    assert np.abs(drawn[40, 65] - second).max() < 1.5
    overlap = 0.5 * np.array(second) + 0.5 * np.array([255, 25.5, 25.5])  # the best on top
    assert np.abs(drawn[40, 55] - overlap).max() < 1.5
    assert np.abs(drawn[54, 20] - [255, 25.5, 25.5]).max() < 1  # its box
    assert (drawn[52, 30] == 100).all() and (drawn[2, 2] == 100).all()
    labels = draw(image, found, ["a", "b"])
    assert (drawn[5:20, 10:70] != labels[5:20, 10:70]).any()
    assert np.array_equal(drawn[30:50, 20:40], labels[30:50, 20:40])
