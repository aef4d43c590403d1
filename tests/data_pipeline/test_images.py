"""Every kind of image file gives the same pixels, or the same error, to all that read images."""

from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image
from plain import base_cfg

from yolact_d2.data import UnreadableImage, YOLACTDatasetMapper, read_image
from yolact_d2.data.images import displayed_size, leaves_folder
from yolact_d2.inference import ImageFiles

HEIGHT, WIDTH = 6, 9
ORIENTATION = 0x0112
GREY = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 4
RGB = np.stack([GREY, 255 - GREY, GREY[::-1]], axis=2)
GREY_16 = GREY.astype(np.uint16) * 256 + np.arange(WIDTH, dtype=np.uint16) * 31
RGB_16 = RGB.astype(np.uint16) * 256 + 99
COLOURS = np.array([(10, 20, 30), (200, 0, 255), (0, 90, 0)], np.uint8)
INDICES = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3
BITS = INDICES == 1
PLAIN = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)  # JPEG keeps it exactly


def _grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def _pillow(array, mode=None, **options):
    return lambda path: Image.fromarray(array, mode).save(path, **options)


def _opencv(array):
    return lambda path: cv2.imwrite(str(path), array)


def _palette(path, **options):
    image = Image.fromarray(INDICES, "P")
    image.putpalette(COLOURS.ravel().tolist())
    image.save(path, **options)


def _exif_png(path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # displayed turned clockwise
    Image.fromarray(RGB).save(path, exif=exif)


def _exif_tiff(array, orientation, **options):
    return _pillow(array, tiffinfo={ORIENTATION: orientation}, **options)


CMYK = np.concatenate([255 - RGB, 0 * RGB[..., :1]], axis=2)
RGBA = np.concatenate([RGB, GREY[..., None] // 2], axis=2)
# Name of the file, its writer, and the expected RGB image.
READABLE = {
    "8-bit grey": ("a.png", _pillow(GREY), _grey(GREY)),
    "16-bit grey PNG": ("a.png", _opencv(GREY_16), _grey(GREY)),
    "16-bit grey TIFF": ("a.tif", _pillow(GREY_16), _grey(GREY)),
    "16-bit grey TIFF, big-endian": ("a.tif", _pillow(GREY_16.astype(">u2")), _grey(GREY)),
    "16-bit grey with EXIF": ("a.tif", _exif_tiff(GREY_16, 6), _grey(np.rot90(GREY, -1))),
    "16-bit RGB PNG": ("a.png", _opencv(RGB_16[..., ::-1]), RGB),
    "16-bit RGB TIFF": ("a.tif", _opencv(RGB_16[..., ::-1]), RGB),
    "1 bit": ("a.png", _pillow(BITS), _grey(255 * BITS)),
    "palette": ("a.png", _palette, COLOURS[INDICES]),
    "transparent": ("a.png", lambda path: _palette(path, transparency=1), COLOURS[INDICES]),
    "GIF": ("a.gif", _palette, COLOURS[INDICES]),
    "grey and alpha": ("a.png", _pillow(np.stack([GREY, GREY // 2], axis=2)), _grey(GREY)),
    "RGB and alpha": ("a.png", _pillow(RGBA), RGB),
    "CMYK": ("a.tif", _pillow(CMYK, "CMYK"), RGB),
    "EXIF in PNG": ("a.png", _exif_png, np.rot90(RGB, -1)),
    "EXIF in TIFF": ("a.tif", _exif_tiff(RGB, 6), np.rot90(RGB, -1)),
    "EXIF mirrored": ("a.tif", _exif_tiff(RGB, 2), RGB[:, ::-1]),
    "broken EXIF": ("a.jpg", _pillow(PLAIN, exif=b"Exif\0\0II*\0\xff\xff\xff"), PLAIN),
    "wrong suffix": ("a.jpg", _pillow(RGB, format="PNG"), RGB),
}


def _truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-700])


INVALID = "cannot be read as an image"
# Name of the file, its writer, the reason, and whether the header shows it.
UNREADABLE = {
    "missing": ("a.png", lambda path: None, "does not exist", True),
    "folder": ("a.png", lambda path: path.mkdir(), INVALID, True),
    "empty": ("a.png", lambda path: path.write_bytes(b""), INVALID, True),
    "text": ("a.png", lambda path: path.write_text("a cat"), INVALID, True),
    "truncated JPEG": ("a.jpg", _truncated, INVALID, False),
    "truncated PNG": ("a.png", _truncated, INVALID, False),
    "PostScript": ("a.jpg", _pillow(RGB, format="EPS"), "is not executed", True),
    "33 bits": ("a.tif", _pillow(70000 * GREY.astype(np.int32)), "8 or 16 bits", False),
    "float": ("a.tif", _pillow(GREY.astype(np.float32)), "save it with 8 or 16 bits", True),
}


def _mappers(image_format):
    return (
        YOLACTDatasetMapper(True, augmentations=[], image_format=image_format, min_box_size=4),
        YOLACTDatasetMapper(False, augmentations=[], image_format=image_format),
    )


@pytest.mark.parametrize("kind", READABLE)
def test_all_readers_give_the_same_image(tmp_path, kind):
    name, write, expected = READABLE[kind]
    path = str(tmp_path / name)
    write(tmp_path / name)
    for image_format, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1))):
        image = read_image(path, image_format)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected[..., order])
        for mapper, dtype in zip(_mappers(image_format), (torch.uint8, torch.uint8)):
            mapped = mapper({"file_name": path})
            assert mapped["image"].dtype == dtype
            np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0), image)
            assert (mapped["height"], mapped["width"]) == expected.shape[:2]
    assert displayed_size(path) == expected.shape[1::-1]
    [frame] = ImageFiles([path])
    np.testing.assert_array_equal(frame.image, expected[..., ::-1])


@pytest.mark.parametrize("kind", UNREADABLE)
def test_all_readers_raise_unreadable_image(tmp_path, kind):
    name, write, reason, in_header = UNREADABLE[kind]
    path = str(tmp_path / name)
    write(tmp_path / name)
    for mapper in _mappers("RGB"):
        with pytest.raises(UnreadableImage, match=f"{path} .*{reason}"):
            mapper({"file_name": path})
    if in_header:
        with pytest.raises(UnreadableImage, match=f"{path} .*{reason}"):
            displayed_size(path)


def test_very_large_images_are_unreadable(tmp_path, monkeypatch):
    _pillow(RGB)(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH / 2 - 1)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        displayed_size(str(tmp_path / "a.png"))


def test_lack_of_memory_is_not_an_unreadable_image(tmp_path, monkeypatch):
    _pillow(RGB)(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        read_image(str(tmp_path / "a.png"), "RGB")


def test_image_mapper_equals_detectron2(tmp_path):
    cfg = base_cfg()
    record = {"width": WIDTH, "height": HEIGHT, "image_id": 3, "annotations": [{}]}
    for name, image_format, min_size in (("a.jpg", "RGB", 0), ("a.png", "BGR", 40)):
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = min_size, image_format
        _pillow(RGB)(tmp_path / name)
        record["file_name"] = str(tmp_path / name)
        ours, theirs = (
            YOLACTDatasetMapper(cfg, is_train=False)(record),
            DatasetMapper(cfg, False)(record),
        )
        assert torch.equal(ours.pop("image"), image := theirs.pop("image"))
        assert image.shape == ((3, 40, 60) if min_size else (3, HEIGHT, WIDTH))
        assert ours == theirs and "annotations" not in ours
    assert record["annotations"] == [{}]


def test_leaves_folder():
    for name in ("a.png", "a/b.png", "a/../b.png", "..a.png"):
        assert not leaves_folder(name)
    for name in ("../a.png", "a/../../b.png", "/a.png", ".."):
        assert leaves_folder(name)
