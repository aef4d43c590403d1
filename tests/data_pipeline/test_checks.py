"""What check_datasets refuses, what it says, and what it lets pass."""

import json
import locale
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
from yolact_d2.data.coco_dataset import COCOSource
from yolact_d2.data.coco_json import read_coco
from yolact_d2.data.dataset_dicts import validate_dicts, warn_suspicious

NAME, OTHER = "test_checks", "test_checks_2"
WIDTH, HEIGHT = 9, 6
CLASSES = ["cat", "Jagdhündin"]
VALID = {
    "bbox": [0, 0, 5, 5],
    "bbox_mode": BoxMode.XYXY_ABS,
    "category_id": 1,
    "segmentation": [[0, 0, 5, 0, 5, 5]],
}


@pytest.fixture(autouse=True)
def forget():
    yield
    _forget(NAME)
    _forget(OTHER)


def _forget(name):
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def _register_dicts(dicts, classes=CLASSES, name=NAME):
    _forget(name)
    DatasetCatalog.register(name, lambda: dicts)
    if classes:
        MetadataCatalog.get(name).thing_classes = classes


def _register_json(folder, num_images=1, *, encoding="utf-8", **changes):
    """A COCO file of images 0.png, 1.png, ...; `changes` are to the record of the last one."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(num_images)
    ]
    if images:
        images[-1].update(changes)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"images": images, "annotations": [], "categories": categories}
    Path(folder, "coco.json").write_text(json.dumps(coco, ensure_ascii=False), encoding=encoding)
    _forget(NAME)
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


def test_classes_have_the_same_order_in_all_datasets(tmp_path):
    record = {"file_name": _image(tmp_path / "a.png"), "width": WIDTH, "height": HEIGHT}
    record["image_id"] = 1
    for classes in (CLASSES[::-1], ["cat", "Dog"]):
        _register_dicts([record])
        _register_dicts([record], classes, OTHER)
        both = {"CLASS_NAMES": []}, {"CLASS_NAMES": CLASSES}
        for yolact in both:
            for train, test in (((NAME, OTHER), ()), ((NAME,), (OTHER,))):
                cfg = _cfg(*train, TEST=test)
                cfg.MODEL.YOLACT.update(yolact)
                with pytest.raises(ValueError, match=f"{OTHER}.* has") as error:
                    check_datasets(cfg, "DATASETS.TEST" if test else "DATASETS.TRAIN")
                source = "CLASS_NAMES" if yolact["CLASS_NAMES"] else f"dataset {NAME!r}"
                assert f"has {classes}, and " in str(error.value)
                assert f"{source} has {CLASSES}" in str(error.value)
    # Evaluation alone compares with training data that has not been read.
    _image(tmp_path / "0.png")
    _register_json(tmp_path)
    assert f"{NAME!r} has {CLASSES}" in _refused(NAME, TEST=(OTHER,), key="DATASETS.TEST")
    _register_dicts([record], CLASSES, OTHER)
    _check(NAME, TEST=(OTHER,), key="DATASETS.TEST")


def test_evaluation_needs_image_ids_and_sizes(tmp_path):
    paths = [_image(tmp_path / f"{i}.png") for i in range(2)]
    good = {"file_name": paths[0], "image_id": 7, "width": WIDTH, "height": HEIGHT}
    evaluate = {"TEST": (NAME,), "key": "DATASETS.TEST"}
    for key in ("image_id", "width", "height"):
        _register_dicts([good, {k: v for k, v in good.items() if k != key}])
        assert f"{paths[0]}" in (message := _refused(**evaluate)) and repr(key) in message
        _check()  # training does not need them
    for image_id in (None, 1.5, np.int64(3)):  # the last cannot be written to a JSON
        _register_dicts([{**good, "image_id": image_id}])
        assert f"'image_id' is {image_id!r}, not an int or str" in _refused(**evaluate)
    _register_dicts([good, {**good, "file_name": paths[1]}])
    assert f"{paths[1]}: 'image_id' is 7, as that of {paths[0]}" in _refused(**evaluate)
    _register_dicts([good, {**good, "file_name": paths[1], "image_id": "8"}])
    _check(**evaluate)


def test_a_file_with_several_image_ids_is_warned_of(tmp_path, caplog):
    record = {"file_name": _image(tmp_path / "a.png"), "image_id": 1}
    _register_dicts([record, {**record, "image_id": 2}, {**record, "image_id": 3}])
    _check()
    assert f"2 duplicate_file (e.g. {record['file_name']}: it has the image ids" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
def test_json_in_any_unicode_encoding(tmp_path, monkeypatch, encoding):
    _image(tmp_path / "0.png")
    for locale_encoding in ("UTF-8", "ISO-8859-1"):
        monkeypatch.setattr(locale, "getpreferredencoding", lambda _, x=locale_encoding: x)
        _register_json(tmp_path, encoding=encoding)
        _check()
        assert MetadataCatalog.get(NAME).thing_classes == CLASSES
        [record] = usable_training_dicts(_cfg(), NAME)
        assert record["file_name"] == str(tmp_path / "0.png") and record["image_id"] == 0
        own_reader = isinstance(DatasetCatalog[NAME], COCOSource)
        assert own_reader == (encoding != "utf-8" or locale_encoding != "UTF-8")


def test_whole_numbers_and_names_that_are_numbers(tmp_path):
    content = {
        "images": [{"id": 1.0, "file_name": "a", "width": 9.0, "height": 6}],
        "annotations": [{"id": 2.0, "image_id": 1.0, "category_id": 3.0}],
        "categories": [{"id": 3.0, "name": 5}, {"id": 4, "name": 0.5}],
    }
    expected = {
        "images": [{"id": 1, "file_name": "a", "width": 9, "height": 6}],
        "annotations": [{"id": 2, "image_id": 1, "category_id": 3}],
        "categories": [{"id": 3, "name": "5"}, {"id": 4, "name": "0.5"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert json.dumps(read_coco(str(tmp_path / "coco.json"))) == json.dumps(expected)


def _disagreeing(change, mode=BoxMode.XYWH_ABS, num=20):
    """Dicts whose boxes, given as arrays of x, y, w and h, are changed."""
    rng = np.random.default_rng(0)
    x, y, w, h = rng.integers([2, 3, 15, 9], [40, 30, 50, 40], (num, 4)).T
    corners = zip(x, y, x + w, y + h)
    polygons = [[[a, b, c, b, c, d, a, d]] for a, b, c, d in np.array(list(corners)).tolist()]
    return [
        {
            "file_name": str(i), "width": 90, "height": 70, "image_id": i,
            "annotations": [
                {"bbox": box, "bbox_mode": mode, "category_id": 0, "segmentation": polygons[i]}
            ],
        }
        for i, box in enumerate(np.stack(change(x, y, w, h), axis=1).tolist())
    ]  # fmt: skip


def test_boxes_that_disagree_with_their_masks_are_warned_of_with_the_cause(caplog):
    for cause, change in {
        "[x1, y1, x2, y2]": lambda x, y, w, h: (x, y, x + w, y + h),
        "[center x, center y, width, height]": lambda x, y, w, h: (x + w / 2, y + h / 2, w, h),
        "[x, y, width, height] with x and y exchanged": lambda x, y, w, h: (y, x, h, w),
        "[x, y, width, height] divided by the size of the image": lambda x, y, w, h: (
            x / 90, y / 70, w / 90, h / 70
        ),
        "[center x, center y, width, height] divided by": lambda x, y, w, h: (
            (x + w / 2) / 90, (y + h / 2) / 70, w / 90, h / 70
        ),
        "of images of another size, 0.5 times as large": lambda x, y, w, h: (
            x / 2, y / 2, w / 2, h / 2
        ),
        "": lambda x, y, w, h: (x, y, w * 0 + 30, h[::-1] + 9),
    }.items():  # fmt: skip
        dicts = _disagreeing(change)
        caplog.clear()
        warn_suspicious(dicts, validate_dicts(dicts)[1], "some")
        [message] = caplog.messages
        assert "of 20 boxes disagree with their masks" in message
        assert ("boxes seem to be" in message) == bool(cause) and cause in message, cause
    dicts = _disagreeing(lambda x, y, w, h: (x, y, w, h), BoxMode.XYXY_ABS)
    caplog.clear()
    warn_suspicious(dicts, validate_dicts(dicts)[1], "some")
    assert "the boxes seem to be [x, y, width, height]" in caplog.text
    caplog.clear()
    dicts = _disagreeing(lambda x, y, w, h: (x, y, w, h))
    dicts[:9] = _disagreeing(lambda x, y, w, h: (y, x, h, w))[:9]
    warn_suspicious(dicts, validate_dicts(dicts)[1], "some")
    assert not caplog.messages  # less than half


def test_classes_that_have_only_crowd_regions_are_warned_of(tmp_path, caplog):
    crowd = {**VALID, "iscrowd": 1}
    record = {"file_name": _image(tmp_path / "a.png"), "annotations": [crowd, VALID, crowd]}
    _register_dicts([record])
    _check()
    assert "only crowd regions" not in caplog.text
    record["annotations"][1] = {**VALID, "category_id": 0}
    _check()
    assert "only crowd regions (iscrowd 1) of ['Jagdhündin']" in caplog.text
