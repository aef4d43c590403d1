"""Images in every form that a user may have them, and those that are refused."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from yolact_d2.data import read_image
from yolact_d2.inference.inputs import to_bgr, to_model_input

BGR = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
RGB = np.ascontiguousarray(BGR[:, :, ::-1])
GREY = BGR[:, :, 0]
TALL = torch.zeros(9, 7, 3, dtype=torch.uint8)


def _rotated():
    image = Image.fromarray(np.rot90(RGB))
    image.getexif()[ExifTag.Orientation] = 6
    return image


@pytest.mark.parametrize("input_format", ["RGB", "BGR", "L"])
def test_every_form_gives_the_same_pixels(tmp_path, input_format):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tensor = torch.from_numpy((BGR if input_format == "BGR" else RGB).transpose(2, 0, 1).copy())
    with Image.open(tmp_path / "a.png") as opened:
        for image in (
            BGR, BGR.copy(order="F"), str(tmp_path / "a.png"), tmp_path / "a.png", opened, tensor,
            Image.fromarray(RGB).convert("RGBA"), _rotated(),
        ):  # fmt: skip
            assert np.array_equal(to_bgr(image, input_format), BGR)
            model_input = to_model_input(image, input_format)
            if input_format == "L":  # as the loaders read it
                loaded = read_image(str(tmp_path / "a.png"), "L")
                assert np.array_equal(model_input, loaded)
            else:
                assert np.array_equal(model_input.transpose(2, 0, 1), tensor)
    for image in (
        GREY, GREY[:, :, None], Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 256),
        torch.from_numpy(GREY.copy()), torch.from_numpy(GREY.copy())[None],
    ):  # fmt: skip
        assert np.array_equal(to_bgr(image, input_format), np.stack([GREY] * 3, axis=2))
        channels = 1 if input_format == "L" else 3
        expected = np.stack([GREY] * channels, axis=2)
        assert np.array_equal(to_model_input(image, input_format), expected)


@pytest.mark.parametrize(
    "image, described",
    [
        (None, "type NoneType, which OpenCV's imread gives"),
        (b"\xff\xd8", "type bytes;"),
        (BGR.tolist(), "type list;"),
        (BGR / 255, "type ndarray of float64 with the shape (7, 9, 3)"),
        (BGR.astype(np.uint16), "type ndarray of uint16 with"),
        (BGR.astype(np.int64), "type ndarray of int64 with"),
        (GREY > 9, "type ndarray of bool with the shape (7, 9)"),
        (BGR[:0], "with the shape (0, 9, 3)"),
        (np.dstack([BGR, GREY]), "with the shape (7, 9, 4)"),
        (BGR.transpose(2, 0, 1), "with the shape (3, 7, 9)"),
        (BGR[None], "with the shape (1, 7, 9, 3)"),
        (np.zeros(4, np.uint8), "with the shape (4,)"),
        (TALL, "type Tensor of torch.uint8 with the shape (9, 7, 3)"),
        (
            TALL.permute(2, 0, 1).bfloat16(),
            "type Tensor of torch.bfloat16 with the shape (3, 9, 7)",
        ),
    ],
)
def test_other_forms_are_refused(image, described):
    with pytest.raises(ValueError, match=re.escape(described)) as error:
        to_bgr(image, "RGB")
    assert "(H, W, 3) in BGR order" in str(error.value)


def test_files_and_pil_images_that_cannot_be_read_are_refused(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-60])
    with pytest.raises(ValueError, match="missing.png does not exist"):
        to_bgr(tmp_path / "missing.png", "RGB")
    with Image.open(tmp_path / "cut.png") as image:
        with pytest.raises(ValueError, match="mode RGB cannot be used: .*truncated"):
            to_bgr(image, "RGB")
    with pytest.raises(ValueError, match="mode I is read as 16 bits, but its values are below 256"):
        to_bgr(Image.fromarray(GREY.astype(np.int32)), "RGB")
    with pytest.raises(ValueError, match=r"has the size \(0, 5\)"):
        to_bgr(Image.new("RGB", (0, 5)), "RGB")
    with pytest.raises(ValueError, match="mode F cannot be used: .*floating-point"):
        to_bgr(Image.fromarray(GREY.astype(np.float32)), "RGB")
