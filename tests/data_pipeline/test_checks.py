"""What check_datasets refuses, what it says, and what it lets pass."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image, ImageFile
from plain import base_cfg

from yolact_d2.data import check_datasets
from yolact_d2.data.checks import usable_training_dicts

NAME = "test_checks"
WIDTH, HEIGHT = 9, 6
CLASSES = ["cat", "dog"]
VALID = {
    "bbox": [0, 0, 5, 5],
    "bbox_mode": BoxMode.XYXY_ABS,
    "category_id": 1,
    "segmentation": [[0, 0, 5, 0, 5, 5]],
}


@pytest.fixture(autouse=True)
def forget():
    yield
    _forget()


def _forget():
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)


def _register_dicts(dicts, classes=CLASSES):
    _forget()
    DatasetCatalog.register(NAME, lambda: dicts)
    if classes:
        MetadataCatalog.get(NAME).thing_classes = classes


def _register_json(folder, num_images=1, **changes):
    """A COCO file of images 0.png, 1.png, ...; `changes` are to the record of the last one."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(num_images)
    ]
    if images:
        images[-1].update(changes)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"images": images, "annotations": [], "categories": categories}
    Path(folder, "coco.json").write_text(json.dumps(coco))
    _forget()
    register_coco_instances(NAME, {}, str(Path(folder, "coco.json")), str(folder))


def _image(path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A registered dataset of three images."""
    _register_json(tmp_path, 3)
    for i in range(3):
        _image(tmp_path / f"{i}.png")
    return tmp_path


def _cfg(*names, num_classes=2, **datasets):
    cfg = base_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names or (NAME,), ()
    cfg.DATASETS.update(datasets)
    cfg.MODEL.YOLACT.NUM_CLASSES = num_classes
    return cfg


def _check(*names, key="DATASETS.TRAIN", **options):
    check_datasets(_cfg(*names, **options), key)


def _refused(*names, **options):
    """The message with which datasets are refused."""
    with pytest.raises(ValueError) as error:
        _check(*names, **options)
    return str(error.value)


def test_valid_dataset_passes(folder):
    _check()


def test_datasets_must_be_named_and_registered(folder):
    assert "DATASETS.TEST is empty" in _refused(key="DATASETS.TEST")
    for names in (("custom_train",), (NAME, "custom_train")):  # each of several is checked
        message = _refused(*names)
        assert "'custom_train' is not registered" in message
        assert NAME in message and "--train-json" in message  # what is, and how it would be


def test_missing_json(folder):
    (folder / "coco.json").unlink()
    message = _refused()
    assert repr(NAME) in message and str(folder / "coco.json") in message
    assert "DETECTRON2_DATASETS" in message


def test_no_images(tmp_path):
    _register_json(tmp_path, 0)
    assert f"{NAME!r} has no images" in _refused()


def test_number_of_categories(folder):
    for num_classes in (1, 80):
        message = _refused(num_classes=num_classes)
        assert repr(NAME) in message and "MODEL.YOLACT.NUM_CLASSES" in message
        assert "2 categories" in message and f"is {num_classes}" in message
    _register_dicts([{"file_name": str(folder / "0.png")}], classes=None)
    assert f"{NAME!r} has no category names" in _refused()


def test_missing_and_unreadable_images(folder):
    path = folder / "1.png"
    path.unlink()
    message = _refused()
    assert repr(NAME) in message and f"{path} does not exist" in message
    for content in (b"", b"no image", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        message = _refused()
        assert repr(NAME) in message and f"{path} cannot be read" in message
    _check(CHECK_IMAGES=False)


def test_recorded_size(folder):
    for width, height in ((WIDTH + 1, HEIGHT), (WIDTH, HEIGHT - 1), (HEIGHT, WIDTH)):
        _register_json(folder, 3, width=width, height=height)
        message = _refused()
        assert repr(NAME) in message and f"{folder / '2.png'} is {WIDTH} x {HEIGHT}" in message
        assert f"recorded as {width} x {height}" in message
        _check(CHECK_IMAGES=False)
    for width in (float(WIDTH), str(WIDTH), None, 0):
        _register_json(folder, 3, width=width)
        for check_images in (True, False):
            message = _refused(CHECK_IMAGES=check_images)
            assert str(folder / "2.png") in message
            assert f"'width' of the image is {width!r}, not a number of pixels" in message


def test_fatal_annotations_of_other_datasets(tmp_path):
    path = _image(tmp_path / "a.png")
    for change, detail in (
        ({"segmentation": np.ones((HEIGHT, WIDTH))}, "'segmentation' is a ndarray"),
        ({"category_id": 2}, "'category_id' is 2, not one in 0..1"),
        ({"category_id": -1}, "'category_id' is -1, not one in 0..1"),
        ({"category_id": True}, "'category_id' is True, not a whole number"),
        ({"bbox_mode": None}, "'bbox_mode' is None"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "'bbox_mode' is <BoxMode.XYXY_REL: 2>"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5], [1, 1, 2, 2]]}, "a polygon has fewer than 3 points"),
        ({"segmentation": [[1, 1, 2, 2]]}, "a polygon has fewer than 3 points"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [27, 27]}}, "the RLE is not compr"),
    ):
        bad = {k: v for k, v in {**VALID, **change}.items() if v is not None}
        _register_dicts([{"file_name": path, "annotations": [VALID, bad]}])
        assert f"{path}: annotations[1]: {detail}" in _refused()
    _register_dicts([{"file_name": path, "annotations": [{**VALID, "category_id": np.int64(0)}]}])
    _check()
    for name in (None, 7):
        _register_dicts([{"file_name": name}])
        assert f"'file_name' of an image is {name}" in _refused()


def test_only_headers_are_read(tmp_path, monkeypatch):
    path = _image(tmp_path / "a.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(tmp_path / "a.tif")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    _register_dicts([{"file_name": path}])
    _check()
    _register_dicts([{"file_name": str(tmp_path / "a.tif")}])
    assert f"{tmp_path / 'a.tif'} cannot be read" in _refused()  # its values are floats


def test_file_names_must_not_leave_the_folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    _image(tmp_path / "outside.png")
    for climb in ("../outside.png", "sub/../../outside.png", f"{tmp_path}/outside.png"):
        _register_json(tmp_path / "images", file_name=climb)
        message = _refused(CHECK_IMAGES=False)
        assert message == _refused()
        assert os.path.join(tmp_path, "images", climb) in message
        assert "DATASETS.ALLOW_PATHS_OUTSIDE" in message
        _check(ALLOW_PATHS_OUTSIDE=True)


def test_checked_training_data_is_not_read_again(tmp_path):
    record = {"file_name": _image(tmp_path / "a.png"), "annotations": [VALID]}
    _register_dicts([record])
    source, calls = DatasetCatalog[NAME], []
    DatasetCatalog[NAME] = lambda: calls.append(1) or source()
    cfg = _cfg()
    _check()
    assert usable_training_dicts(cfg, NAME) == [record] and len(calls) == 1
    assert usable_training_dicts(cfg, NAME) == [record] and len(calls) == 2
    _check()
    _register_dicts([{"file_name": "other", "annotations": []}])  # another dataset of the name
    assert usable_training_dicts(cfg, NAME)[0]["file_name"] == "other"
