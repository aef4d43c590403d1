"""What check_datasets refuses, what it says, and what it lets pass."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from PIL import Image, ImageFile

from yolact_d2 import add_yolact_config
from yolact_d2.data import check_datasets

NAME = "test_checks"
WIDTH, HEIGHT = 9, 6
CLASSES = ["cat", "dog"]
ORIENTATION = 0x0112


def _image():
    return Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def _write_json(folder, num_images, **changes):
    """A COCO file of images 0.png, 1.png, ...; `changes` are to the record of the last one."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(num_images)
    ]
    if images:
        images[-1].update(changes)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"images": images, "annotations": [], "categories": categories}
    (folder / "coco.json").write_text(json.dumps(coco))


@pytest.fixture
def registered():
    """Registers datasets of a folder's coco.json, and forgets them in the end."""
    names = []

    def register(folder, name=NAME):
        register_coco_instances(name, {}, str(folder / "coco.json"), str(folder))
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def folder(tmp_path, registered):
    """A registered dataset of three images."""
    _write_json(tmp_path, 3)
    for i in range(3):
        _image().save(tmp_path / f"{i}.png")
    registered(tmp_path)
    return tmp_path


def _check(names=(NAME,), key="DATASETS.TRAIN", num_classes=2, allow_outside=False):
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names, ()
    cfg.DATASETS.ALLOW_PATHS_OUTSIDE = allow_outside
    cfg.MODEL.YOLACT.NUM_CLASSES = num_classes
    check_datasets(cfg, key)


def _refused(*names, num_classes=2):
    """The message with which datasets are refused."""
    with pytest.raises(ValueError) as error:
        _check(names or (NAME,), num_classes=num_classes)
    return str(error.value)


def test_good_dataset_passes(folder):
    _check()


def test_no_datasets():
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        _check(key="DATASETS.TEST")


def test_unregistered_name(folder):
    message = _refused("no_such_dataset")
    assert "'no_such_dataset'" in message and "not registered" in message
    assert NAME in message  # among the known ones


@pytest.mark.parametrize("name, flag", [("own_train", "--train-json"), ("own_val", "--val-json")])
def test_a_json_of_ones_own_must_be_given_again(folder, name, flag):
    message = _refused(name)
    assert f"{name!r} is not registered" in message and flag in message


def test_every_name_is_checked(folder):
    assert "'no_such_dataset'" in _refused(NAME, "no_such_dataset")


def test_missing_json(tmp_path, registered):
    registered(tmp_path)
    message = _refused()
    assert repr(NAME) in message and str(tmp_path / "coco.json") in message
    assert "DETECTRON2_DATASETS" in message


def test_no_images(tmp_path, registered):
    _write_json(tmp_path, 0)
    registered(tmp_path)
    message = _refused()
    assert repr(NAME) in message and "no images" in message


@pytest.mark.parametrize("num_classes", [1, 80])
def test_number_of_categories(folder, num_classes):
    message = _refused(num_classes=num_classes)
    assert repr(NAME) in message and "MODEL.YOLACT.NUM_CLASSES" in message
    assert "2 categories" in message and f"is {num_classes}" in message


def test_missing_image(folder):
    (folder / "1.png").unlink()
    message = _refused()
    assert repr(NAME) in message and str(folder / "1.png") in message
    assert "does not exist" in message


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_image(folder, content):
    (folder / "1.png").write_bytes(content)
    message = _refused()
    assert repr(NAME) in message and str(folder / "1.png") in message
    assert "cannot be read" in message


@pytest.mark.parametrize(
    "width, height", [(WIDTH + 1, HEIGHT), (WIDTH, HEIGHT - 1), (HEIGHT, WIDTH)]
)
def test_wrong_size(folder, width, height):
    _write_json(folder, 3, width=width, height=height)
    message = _refused()
    assert repr(NAME) in message and str(folder / "2.png") in message
    assert f"is {WIDTH} x {HEIGHT}" in message and f"as {width} x {height}" in message


def test_last_of_many_images_is_checked(tmp_path, registered):
    _write_json(tmp_path, 200, file_name="other.png", height=HEIGHT + 1)
    for name in [*range(199), "other"]:
        _image().save(tmp_path / f"{name}.png")
    registered(tmp_path)
    assert str(tmp_path / "other.png") in _refused()


def test_sizes_need_not_be_recorded(tmp_path):
    _image().save(tmp_path / "a.png")
    DatasetCatalog.register(NAME, lambda: [{"file_name": str(tmp_path / "a.png")}])
    MetadataCatalog.get(NAME).thing_classes = CLASSES
    try:
        _check()
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_counts(tmp_path, registered, orientation):
    """Detectron2 applies it, so the displayed size is the one to record."""
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    _image().save(path, exif=exif)
    turned = orientation >= 5
    displayed, other = (WIDTH, HEIGHT), (HEIGHT, WIDTH)
    if turned:
        displayed, other = other, displayed
    assert read_image(str(path), "RGB").shape == (*displayed[::-1], 3)

    registered(tmp_path)
    _write_json(tmp_path, 1, file_name="a.jpg", width=displayed[0], height=displayed[1])
    _check()
    _write_json(tmp_path, 1, file_name="a.jpg", width=other[0], height=other[1])
    message = _refused()
    assert str(path) in message and f"is {displayed[0]} x {displayed[1]}" in message


def _register(dicts, classes):
    DatasetCatalog.register(NAME, lambda: dicts)
    if classes:
        MetadataCatalog.get(NAME).thing_classes = classes


@pytest.fixture
def forget():
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"segmentation": None}, "has no 'segmentation'"),
        ({"bbox": None}, "has no 'bbox'"),
        ({"category_id": 2}, "has the category_id 2, not one in 0..1"),
        ({"category_id": -1}, "has the category_id -1, not one in 0..1"),
        ({"bbox_mode": None}, "has the bbox_mode None"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "has the bbox_mode <BoxMode.XYXY_REL: 2>"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5], [1, 1, 2, 2]]}, "has a polygon of fewer than 3"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [27, 27]}},
            "has an RLE that is not compr",
        ),
        ({"bbox": [0, 0, 10**400, 5]}, "has the bbox"),
    ],
)
def test_unusable_object_is_named(tmp_path, forget, change, message):
    _image().save(tmp_path / "a.png")
    good = {
        "bbox": [0, 0, 5, 5],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "segmentation": [[0, 0, 5, 0, 5, 5]],
    }
    bad = {k: v for k, v in {**good, **change}.items() if v is not None}
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [good, bad]}
    _register([record], CLASSES)
    assert f"{record['file_name']}: object 1 (from 0) {message}" in _refused()


def test_missing_category_names_are_named(tmp_path, forget):
    _image().save(tmp_path / "a.png")
    _register([{"file_name": str(tmp_path / "a.png")}], None)
    assert f"{NAME!r} has no category names" in _refused()


def test_only_the_header_of_a_png_is_read(tmp_path, forget, monkeypatch):
    _image().save(tmp_path / "a.png")
    _register([{"file_name": str(tmp_path / "a.png")}], CLASSES)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    _check()


@pytest.mark.parametrize("climb", ["../outside.png", "sub/../../outside.png", "/{}/outside.png"])
def test_file_names_may_not_leave_the_folder(tmp_path, registered, climb):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    _image().save(tmp_path / "outside.png")
    file_name = climb.format(str(tmp_path).strip("/"))
    _write_json(tmp_path / "images", 1, file_name=file_name)
    registered(tmp_path / "images")
    message = _refused()
    assert os.path.join(tmp_path, "images", file_name) in message
    assert "DATASETS.ALLOW_PATHS_OUTSIDE" in message
    _check(allow_outside=True)


def test_links_and_detours_are_the_users_own(tmp_path, registered, monkeypatch):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    _image().save(tmp_path / "outside.png")
    (tmp_path / "images" / "0.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "images" / "..hidden.png").symlink_to(tmp_path / "outside.png")
    monkeypatch.chdir(tmp_path)
    for name, root in (("one", tmp_path / "images"), ("two", Path("images/sub/.."))):
        for file_name in ("0.png", "sub/../0.png", "..hidden.png"):
            _write_json(tmp_path / "images", 1, file_name=file_name)
            registered(root, f"{NAME}_{name}_{file_name}")
            _check((f"{NAME}_{name}_{file_name}",))


def test_datasets_without_a_folder_may_be_anywhere(tmp_path, forget):
    _image().save(tmp_path / "a.png")
    _register([{"file_name": str(tmp_path / "sub" / ".." / "a.png")}], CLASSES)
    (tmp_path / "sub").mkdir()
    _check()


@pytest.mark.parametrize("name", [None, 7])
def test_file_name_that_is_none(forget, name):
    _register([{"file_name": name}], CLASSES)
    assert f"an image has the file_name {name}" in _refused()


def test_floating_point_images_are_refused_before_they_are_decoded(tmp_path, forget, monkeypatch):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(tmp_path / "a.tif")
    _register([{"file_name": str(tmp_path / "a.tif")}], CLASSES)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    message = _refused()
    assert str(tmp_path / "a.tif") in message and "save it with 8 or 16 bits" in message


@pytest.mark.parametrize("width", [float(WIDTH), str(WIDTH), None])
def test_sizes_are_whole_numbers(folder, width):
    _write_json(folder, 3, width=width)
    assert f"is recorded as {width} x {HEIGHT}" in _refused()
