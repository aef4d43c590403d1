"""The runtime's image files, channels and masks, against OpenCV, Pillow and PyTorch."""

import io
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from yolact_runtime.images import (
    read_image,
    resize_antialiased,
    resize_bilinear,
    to_channels,
    write_png,
)
from yolact_runtime.masks import paste_masks


@pytest.fixture
def picture():
    """Smooth and noisy parts, so that encoders use every filter of PNG."""
    rng = np.random.default_rng(0)
    image = np.add.outer(np.arange(37) * 3, np.arange(53) * 2)[..., None] + [0, 60, 110]
    image[10:20] = rng.integers(0, 256, (10, 53, 3))
    image[25:30] = image[24]
    return (image % 256).astype(np.uint8)


def test_png_files_are_read_without_opencv(picture, tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    alpha = np.full(picture.shape[:2], 128, np.uint8)
    for mode, image in (
        ("RGB", picture),
        ("RGBA", np.dstack([picture, alpha])),
        ("L", picture[:, :, 0]),
        ("LA", np.dstack([picture[:, :, 0], alpha])),
    ):
        Image.fromarray(image, mode).save(path)
        expected = picture[:, :, ::-1] if "RGB" in mode else np.repeat(picture[..., :1], 3, axis=2)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "cv2", None)
            assert np.array_equal(read_image(path), expected)
        if "A" not in mode:
            assert np.array_equal(read_image(path), expected)
    # Every filter for whole images: 0 none, 1 sub, 2 up, 3 average, 4 Paeth.
    for kind in range(5):
        _, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_FILTER, 8 << kind])
        (tmp_path / "a.png").write_bytes(data.tobytes())
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "cv2", None)
            assert np.array_equal(read_image(path), picture)


def test_written_png_files_are_read_back(picture, tmp_path):
    path = str(tmp_path / "a.png")
    write_png(path, picture)
    assert np.array_equal(cv2.imread(path), picture)


def test_files_that_are_no_images_are_named(picture, tmp_path, monkeypatch):
    palette = io.BytesIO()
    Image.fromarray(picture).convert("P").save(palette, "PNG")
    write_png(str(tmp_path / "whole.png"), picture)
    cut = (tmp_path / "whole.png").read_bytes()[:200]
    files = {
        "text.png": (b"text", "no PNG file: other formats need opencv-python"),
        "palette.png": (palette.getvalue(), "needs opencv-python"),
        "cut.png": (cut, "truncated"),
    }
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            read_image(str(tmp_path / name))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="text.png.*cannot be read"):
        read_image(str(tmp_path / "text.png"))
    with pytest.raises(FileNotFoundError):
        read_image(str(tmp_path / "missing.png"))


def test_channels(picture):
    assert np.array_equal(to_channels(picture, "BGR"), picture)
    assert np.array_equal(to_channels(picture, "RGB"), picture[:, :, ::-1])
    grey = np.asarray(Image.fromarray(picture[:, :, ::-1].copy()).convert("L"))
    assert np.array_equal(to_channels(picture, "L")[..., 0], grey)
    assert np.array_equal(to_channels(grey, "BGR"), np.repeat(grey[..., None], 3, axis=2))
    for wrong in (None, picture[:, :, :2], picture.astype(float), picture[:0], picture[0, 0]):
        with pytest.raises(ValueError, match="an image"):
            to_channels(wrong, "BGR")


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
