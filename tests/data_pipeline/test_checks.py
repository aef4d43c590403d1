"""What check_datasets refuses, what it says, and what it lets pass."""

import json
import os

import numpy as np
import pytest
from coco_examples import (
    CLASSES,
    HEIGHT,
    NAME,
    WIDTH,
    annotation,
    coco_json,
    polygon,
    register_dicts,
    register_json,
    write_image,
)
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import ImageFile
from plain import base_cfg

from yolact_d2.data import build_test_loader, check_datasets
from yolact_d2.data.checks import usable_training_dicts
from yolact_d2.data.coco_json import read_coco
from yolact_d2.data.dataset_dicts import validate_dicts, warn_suspicious

OTHER = "another_dataset"
VALID = annotation(bbox_mode=BoxMode.XYWH_ABS)


@pytest.fixture
def folder(tmp_path):
    """A registered dataset of three images."""
    register_json(tmp_path, coco_json(num_images=3))
    for i in (1, 2, 3):
        write_image(tmp_path / f"{i}.png")
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


def test_datasets_must_be_named_and_registered(folder):
    assert "DATASETS.TEST is empty" in _refused(key="DATASETS.TEST")
    for names in (("custom_train",), (NAME, "custom_train")):  # each of several is checked
        message = _refused(*names)
        assert "'custom_train' is not registered" in message
        assert NAME in message and "--train-json" in message  # what is, and how it would be


def test_missing_json_and_no_images(folder):
    register_json(folder, coco_json(num_images=0))
    assert f"{NAME!r} has no images" in _refused()
    (folder / "coco.json").unlink()
    message = _refused()
    assert repr(NAME) in message and str(folder / "coco.json") in message
    assert "DETECTRON2_DATASETS" in message


def test_number_of_categories(folder):
    for num_classes in (1, 80):
        message = _refused(num_classes=num_classes)
        assert repr(NAME) in message and "MODEL.YOLACT.NUM_CLASSES" in message
        assert "2 categories" in message and f"is {num_classes}" in message
    register_dicts({"file_name": str(folder / "1.png")}, classes=None)
    assert f"{NAME!r} has no category names" in _refused()


def test_missing_and_unreadable_images(folder):
    _check()
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
        register_json(folder, coco_json(num_images=3, width=width, height=height))
        message = _refused()
        assert repr(NAME) in message and f"{folder / '3.png'} is {WIDTH} x {HEIGHT}" in message
        assert f"recorded as {width} x {height}" in message
        _check(CHECK_IMAGES=False)
    for width in (WIDTH + 0.5, str(WIDTH), None, 0):
        register_json(folder, coco_json(num_images=3, width=width))
        for check_images in (True, False):
            message = _refused(CHECK_IMAGES=check_images)
            assert str(folder / "3.png") in message
            assert f"'width' of the image is {width!r}, not a number of pixels" in message
    register_json(folder, coco_json(num_images=3, width=float(WIDTH)))
    _check()


def test_fatal_annotations_of_other_datasets(tmp_path):
    path = write_image(tmp_path / "a.png")
    for change, detail in (
        ({"segmentation": np.ones((HEIGHT, WIDTH))}, "'segmentation' is a ndarray"),
        ({"category_id": 2}, "'category_id' is 2, not one in 0..1"),
        ({"category_id": -1}, "'category_id' is -1, not one in 0..1"),
        ({"category_id": True}, "'category_id' is True, not a whole number"),
        ({"bbox_mode": None}, "'bbox_mode' is None"),
        ({"bbox_mode": BoxMode.XYXY_REL}, "'bbox_mode' is <BoxMode.XYXY_REL: 2>"),
        ({"segmentation": [[0, 0, 5, 0, 5, 5], [1, 1, 2, 2]]}, "a polygon has fewer than 3 points"),
        ({"segmentation": [[1, 1, 2, 2]]}, "a polygon has fewer than 3 points"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [600, 600]}}, "the RLE is not compr"),
    ):
        bad = {k: v for k, v in {**VALID, **change}.items() if v is not None}
        register_dicts({"file_name": path, "annotations": [VALID, bad]})
        assert f"{path}: annotations[1]: {detail}" in _refused()
    register_dicts({"file_name": path, "annotations": [{**VALID, "category_id": np.int64(0)}]})
    _check()
    register_dicts({"file_name": path, "annotations": None})
    assert "'annotations' of the image is None, not a list" in _refused()
    for name in (None, 7):
        register_dicts({"file_name": name})
        assert f"'file_name' of an image is {name}" in _refused()


def test_only_headers_are_read(folder, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    _check()


def test_file_names_must_not_leave_the_folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    write_image(tmp_path / "outside.png")
    for climb in ("../outside.png", "sub/../../outside.png", f"{tmp_path}/outside.png"):
        register_json(tmp_path / "images", coco_json(file_name=climb))
        message = _refused(CHECK_IMAGES=False)
        assert message == _refused()
        assert os.path.join(tmp_path, "images", climb) in message
        assert "DATASETS.ALLOW_PATHS_OUTSIDE" in message
        _check(ALLOW_PATHS_OUTSIDE=True)


def test_what_was_checked_is_not_used_for_another_dataset_of_the_name(tmp_path):
    register_dicts({"file_name": write_image(tmp_path / "a.png"), "annotations": [VALID]})
    _check()
    register_dicts({"file_name": "other", "annotations": []})
    assert usable_training_dicts(_cfg(), NAME)[0]["file_name"] == "other"


def test_classes_have_the_same_order_in_all_datasets(tmp_path):
    path = write_image(tmp_path / "1.png")
    record = {"file_name": path, "width": WIDTH, "height": HEIGHT, "image_id": 1}
    for classes in (CLASSES[::-1], ["cat", "Dog"]):
        register_dicts(record)
        register_dicts(record, classes=classes, name=OTHER)
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
    register_json(tmp_path, coco_json())
    assert f"{NAME!r} has {CLASSES}" in _refused(NAME, TEST=(OTHER,), key="DATASETS.TEST")
    register_dicts(record, name=OTHER)
    _check(NAME, TEST=(OTHER,), key="DATASETS.TEST")


def test_evaluation_needs_image_ids_and_sizes(tmp_path):
    paths = [write_image(tmp_path / f"{i}.png") for i in range(2)]
    good = {"file_name": paths[0], "image_id": 7, "width": WIDTH, "height": HEIGHT}
    evaluate = {"TEST": (NAME,), "key": "DATASETS.TEST"}
    for key in ("image_id", "width", "height"):
        register_dicts(good, {k: v for k, v in good.items() if k != key})
        assert f"{paths[0]}" in (message := _refused(**evaluate)) and repr(key) in message
        _check()  # training does not need them
    for image_id in (None, 1.5, np.int64(3)):  # the last cannot be written to a JSON
        register_dicts({**good, "image_id": image_id})
        assert f"'image_id' is {image_id!r}, not a whole number or text" in _refused(**evaluate)
    register_dicts(good, {**good, "file_name": paths[1]})
    assert f"{paths[1]}: 'image_id' is 7, as that of {paths[0]}" in _refused(**evaluate)
    register_dicts(good, {**good, "file_name": paths[1], "image_id": "8"})
    assert f"{paths[1]}: 'image_id' is '8', but that of another image is 7" in _refused(**evaluate)
    floats = {**good, "image_id": 7.0, "width": float(WIDTH), "height": float(HEIGHT)}
    register_dicts(floats)
    _check(**evaluate)
    register_dicts({**good, "image_id": "7"}, {**good, "file_name": paths[1], "image_id": "8"})
    _check(**evaluate)
    register_dicts(*[good] * 3)  # to see it more often
    assert "'image_id' is 7, as that of" in _refused(**evaluate)
    _check()


def test_pascal_voc_has_no_masks_and_is_evaluated_without(tmp_path):
    box = {"bbox": [1, 2, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {
        "file_name": write_image(tmp_path / "1.png"), "image_id": "2007_1", "width": WIDTH,
        "height": HEIGHT, "annotations": [box],
    }  # fmt: skip
    register_dicts(record)
    MetadataCatalog.get(NAME).evaluator_type = "pascal_voc"
    _check(TEST=(NAME,), key="DATASETS.TEST")
    assert "'segmentation' is None" in _refused()


def test_ground_truth_of_own_readers(tmp_path):
    """Detectron2 converts the JSON, but it is evaluated by pycocotools."""
    path = write_image(tmp_path / "1.png")
    record = {"file_name": path, "image_id": 1, "width": WIDTH, "height": HEIGHT}
    coco = coco_json([annotation()])
    for change, message in (
        (lambda: coco["annotations"][0].update(id="u1"), "annotation id 'u1' is not a number"),
        (lambda: coco.update(coco_json(id=2)), "has no image with the id 1"),
        (lambda: None, "nowhere.json"),
    ):
        change()
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        register_dicts(record)
        name = message if message.endswith("json") else "coco.json"
        MetadataCatalog.get(NAME).json_file = str(tmp_path / name)
        assert message in _refused(TEST=(NAME,), key="DATASETS.TEST")
    test_set = coco_json()
    del test_set["annotations"]
    register_json(tmp_path, test_set)
    _check(NAME, TEST=(NAME,), key="DATASETS.TEST")


def test_json_in_any_unicode_encoding(tmp_path):
    path = write_image(tmp_path / "1.png")
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32-be"):
        register_json(tmp_path, coco_json(), encoding)
        if encoding == "utf-16":  # without a check, as in the other processes of a machine
            [[example]] = build_test_loader(_cfg(), NAME)
            assert example["file_name"] == path
        _check()
        assert MetadataCatalog.get(NAME).thing_classes == CLASSES
        [record] = usable_training_dicts(_cfg(), NAME)
        assert record["file_name"] == path and record["image_id"] == 1
        register_json(tmp_path, coco_json(), encoding)
        MetadataCatalog.get(NAME).thing_classes = CLASSES[::-1]
        assert "'thing_classes'" in (message := _refused()) and str(CLASSES) in message


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
    masks = [[polygon(*box)] for box in np.stack([x, y, w, h], axis=1).tolist()]
    boxes = np.stack(change(x, y, w, h), axis=1).tolist()
    return [
        {
            "file_name": str(i), "width": 90, "height": 70, "image_id": i,
            "annotations": [annotation(box, bbox_mode=mode, segmentation=mask)],
        }
        for i, (box, mask) in enumerate(zip(boxes, masks))
    ]  # fmt: skip


def test_boxes_that_disagree_with_their_masks_are_warned_of_with_the_cause(caplog):
    def warnings(dicts):
        caplog.clear()
        usable, issues = validate_dicts(dicts)
        warn_suspicious(usable, issues, "some", len(dicts))
        return caplog.messages

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
        "[x, y, width, height] in percent of the size": lambda x, y, w, h: (
            x / 0.9, y / 0.7, w / 0.9, h / 0.7
        ),
        "": lambda x, y, w, h: (x, y, w * 0 + 30, h[::-1] + 9),
    }.items():  # fmt: skip
        [message] = warnings(_disagreeing(change))
        assert "of 20 boxes disagree with their masks" in message
        assert ("boxes seem to be" in message) == bool(cause) and cause in message, cause
    [message] = warnings(_disagreeing(lambda x, y, w, h: (x, y, w, h), BoxMode.XYXY_ABS))
    assert "the boxes seem to be [x, y, width, height]" in message
    dicts = _disagreeing(lambda x, y, w, h: (x, y, w, h))
    for record in dicts:
        record["annotations"][0]["segmentation"] = [polygon(0.2, 0.1, 0.6, 0.8)]
    assert "the masks seem to be divided by the size of the image" in warnings(dicts)[0]
    dicts = _disagreeing(lambda x, y, w, h: (x, y, w, h))
    dicts[:9] = _disagreeing(lambda x, y, w, h: (y, x, h, w))[:9]
    assert not warnings(dicts)  # less than half


def test_classes_with_crowds_only_and_files_of_several_images_are_warned_of(tmp_path, caplog):
    crowd = {**VALID, "iscrowd": 1}
    record = {"file_name": write_image(tmp_path / "a.png"), "annotations": [crowd, VALID, crowd]}
    register_dicts(record)
    _check()
    assert not caplog.text
    record["annotations"][1] = {**VALID, "category_id": 0}
    register_dicts(*({**record, "image_id": i} for i in range(3)))
    _check()
    assert "only crowd regions (iscrowd 1) of ['Jagdhündin']" in caplog.text
    assert f"2 duplicate_file (e.g. {record['file_name']}: it has the image ids" in caplog.text
