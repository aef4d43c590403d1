"""Each kind of picture file: what it is read as by all who read pictures, or why it is refused."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image, PngImagePlugin
from plain import base_cfg

from yolact_d2.data import ImageMapper, UnreadableImage, YOLACTDatasetMapper, read_image
from yolact_d2.data.images import displayed_size, leaves_folder
from yolact_d2.data.inspection.images import image_faults
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
EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\nshowpage\n"
PLAIN = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)  # what a JPEG keeps


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


def _turned(path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise
    Image.fromarray(RGB).save(path, exif=exif)


def _turned_tiff(orientation, **options):
    return _pillow(RGB, tiffinfo={ORIENTATION: orientation}, **options)


def _turned_16(path):
    Image.fromarray(GREY_16).save(path, tiffinfo={ORIENTATION: 6})


def _turned_behind(path):
    _turned(path)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])


def _turned_by_xmp(path):
    xmp = '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(RGB).save(path, pnginfo=info)


def _alpha(*channels):
    return np.stack([*channels, GREY // 2], axis=2)


# Name of the file, who writes it, and what it is read as, RGB.
USED = {
    "8-bit grey": ("a.png", _pillow(GREY), _grey(GREY)),
    "16-bit grey PNG": ("a.png", _opencv(GREY_16), _grey(GREY)),
    "16-bit grey TIFF": ("a.tif", _pillow(GREY_16), _grey(GREY)),
    "16-bit grey TIFF, big-endian": ("a.tif", _pillow(GREY_16.astype(">u2")), _grey(GREY)),
    "16-bit values in 32": ("a.tif", _pillow(GREY_16.astype(np.int32)), _grey(GREY)),
    "16-bit grey, turned by EXIF": ("a.tif", _turned_16, _grey(np.rot90(GREY, -1))),
    "16-bit RGB PNG": ("a.png", _opencv(RGB_16[..., ::-1]), RGB),
    "16-bit RGB TIFF": ("a.tif", _opencv(RGB_16[..., ::-1]), RGB),
    "1 bit": ("a.png", _pillow(BITS), _grey(255 * BITS)),
    "palette": ("a.png", _palette, COLOURS[INDICES]),
    "palette, one colour transparent": (
        "a.png", lambda path: _palette(path, transparency=1), COLOURS[INDICES]
    ),
    "GIF": ("a.gif", _palette, COLOURS[INDICES]),
    "grey and alpha": ("a.png", _pillow(_alpha(GREY)), _grey(GREY)),
    "RGB and alpha": ("a.png", _pillow(_alpha(*RGB.transpose(2, 0, 1))), RGB),
    # Without black, cyan is what red is missing.
    "CMYK": (
        "a.tif", _pillow(np.concatenate([255 - RGB, 0 * RGB[..., :1]], axis=2), "CMYK"), RGB
    ),
    "EXIF rotation": ("a.png", _turned, np.rot90(RGB, -1)),
    "EXIF rotation, TIFF": ("a.tif", _turned_tiff(6), np.rot90(RGB, -1)),
    "EXIF rotation, compressed TIFF": (
        "a.tif", _turned_tiff(8, compression="tiff_lzw"), np.rot90(RGB)
    ),
    "EXIF mirrored TIFF": ("a.tif", _turned_tiff(2), RGB[:, ::-1]),
    "EXIF behind the pixels": ("a.png", _turned_behind, RGB),
    "XMP rotation": ("a.png", _turned_by_xmp, np.rot90(RGB, -1)),
    "broken EXIF": (
        "a.jpg", _pillow(PLAIN, exif=b"Exif\0\0II*\0\xff\xff\xff"), PLAIN
    ),
    "other name than format": ("a.jpg", _pillow(RGB, format="PNG"), RGB),
}  # fmt: skip


def _png(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 99)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _cut(name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def write(path):
        Image.fromarray(noise).save(path.parent / name)
        path.write_bytes((path.parent / name).read_bytes()[:-700])

    return write


# Name of the file, who writes it, the reason, and whether its header already says so.
REFUSED = {
    "missing": ("a.png", lambda path: None, "does not exist", True),
    "folder": ("a.png", lambda path: path.mkdir(), "cannot be read as an image", True),
    "empty": ("a.png", lambda path: path.write_bytes(b""), "cannot be read as an image", True),
    "text": ("a.png", lambda path: path.write_text("a cat"), "cannot be read as an image", True),
    "cut JPEG": ("a.jpg", _cut("b.jpg"), "cannot be read as an image", False),
    "cut PNG": ("a.png", _cut("b.png"), "cannot be read as an image", False),
    "too few pixels": (
        "a.png", lambda path: path.write_bytes(_png(3000, 3000)), "cannot be read as", False
    ),
    "claims 10^10 pixels": (
        "a.png", lambda path: path.write_bytes(_png(10**5, 10**5)), "decompression bomb", True
    ),
    "PostScript": ("a.png", lambda path: path.write_text(EPS), "is a program", True),
    "floating point": (
        "a.tif", _pillow(GREY.astype(np.float32)), "save it with 8 or 16 bits", True
    ),
    "negative": (
        "a.tif", _pillow(GREY.astype(np.int32) - 9), "from -9 to 203; save it with 8 or", False
    ),
    "more than 16 bits": (
        "a.tif", _pillow(GREY.astype(np.int32) * 1000), "from 0 to 212000; save it", False
    ),
}  # fmt: skip


def _mapper(image_format):
    return YOLACTDatasetMapper(augmentations=[], image_format=image_format, min_box_size=4)


@pytest.mark.parametrize("kind", USED)
def test_what_is_read_is_the_same_everywhere(tmp_path, kind):
    name, write, expected = USED[kind]
    path = str(tmp_path / name)
    write(tmp_path / name)
    for image_format, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1))):
        image = read_image(path, image_format)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected[..., order])
        channels_first = expected[..., order].transpose(2, 0, 1)
        trained_on = _mapper(image_format)({"file_name": path})["image"]
        assert trained_on.dtype == torch.float32
        np.testing.assert_array_equal(trained_on, channels_first)
        evaluated = ImageMapper(augmentations=[], image_format=image_format)({"file_name": path})
        assert evaluated["image"].dtype == torch.uint8
        np.testing.assert_array_equal(evaluated["image"], channels_first)
        assert (evaluated["height"], evaluated["width"]) == expected.shape[:2]
    assert displayed_size(path) == expected.shape[1::-1]
    [frame] = ImageFiles([path])
    np.testing.assert_array_equal(frame.image, expected[..., ::-1])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_everywhere(tmp_path, kind):
    name, write, reason, by_header = REFUSED[kind]
    path = str(tmp_path / name)
    write(tmp_path / name)
    readers = [
        lambda: read_image(path, "RGB"),
        lambda: _mapper("RGB")({"file_name": path}),
        lambda: ImageMapper(augmentations=[], image_format="RGB")({"file_name": path}),
    ]
    if by_header:
        readers.append(lambda: displayed_size(path))
    for reader in readers:
        with pytest.raises(UnreadableImage) as error:
            reader()
        assert str(error.value).startswith(f"{path} ") and reason in str(error.value)
    pictures = ImageFiles([path])
    assert list(pictures) == []
    [(failed, said)] = pictures.failed
    assert failed == path and reason in said and path not in said
    [(fault, _)] = image_faults({"file_name": name, "width": 64, "height": 64}, str(tmp_path))
    assert fault == ("missing_image" if kind in ("missing", "folder") else "unreadable_image")


def test_detectron2_reads_16_bits_as_white(tmp_path):
    """Why there is a function of our own. If this fails, there need not be."""
    _opencv(GREY_16)(tmp_path / "a.png")
    assert (detectron2_read_image(str(tmp_path / "a.png"), "RGB")[GREY > 0] == 255).all()


def test_16_bits_are_read_as_opencv_reads_them(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (40, 50), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    read = read_image(str(tmp_path / "a.png"), "BGR")
    np.testing.assert_array_equal(read, cv2.imread(str(tmp_path / "a.png")))


def test_lack_of_memory_is_not_the_file(tmp_path, monkeypatch):
    _pillow(RGB)(tmp_path / "a.png")

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        read_image(str(tmp_path / "a.png"), "RGB")


@pytest.mark.parametrize("min_size", [0, 40])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_evaluation_sees_what_detectron2_gives(tmp_path, min_size, image_format):
    cfg = base_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = min_size, image_format
    record = {"width": WIDTH, "height": HEIGHT, "image_id": 3, "annotations": [{}]}
    for name in ("a.jpg", "b.png"):
        _pillow(RGB)(tmp_path / name)
        record["file_name"] = str(tmp_path / name)
        ours, theirs = ImageMapper(cfg)(record), DatasetMapper(cfg, False)(record)
        assert torch.equal(ours.pop("image"), image := theirs.pop("image"))
        assert image.shape == ((3, 40, 60) if min_size else (3, HEIGHT, WIDTH))
        assert ours == theirs and "annotations" not in ours
    assert record["annotations"] == [{}]


@pytest.mark.parametrize(
    "mapper", [_mapper("RGB"), ImageMapper(augmentations=[], image_format="RGB")]
)
def test_every_error_of_a_mapper_names_the_file(tmp_path, mapper):
    _pillow(RGB)(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "width": WIDTH}
    with pytest.raises(ValueError) as error:
        mapper(record)
    assert str(error.value) == f"{record['file_name']}: KeyError: 'height'"
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "name, leaves",
    [("a.png", False), ("a/b.png", False), ("a/../b.png", False), ("..a.png", False),
     ("../a.png", True), ("a/../../b.png", True), ("/a.png", True), ("..", True)],
)  # fmt: skip
def test_leaves_folder(name, leaves):
    assert leaves_folder(name) is leaves
