"""What training uses of an annotation with faults; test_inspection.py has more of the faults."""

import copy
import logging
import os
import uuid

import numpy as np
import pytest
from coco_examples import (
    BOX,
    HEIGHT,
    NAME,
    WIDTH,
    annotation,
    coco_json,
    polygon,
    rectangle,
    register_json,
    rle,
    write_image,
)
from detectron2.structures import BoxMode
from plain import base_cfg

from yolact_d2.data import YOLACTDatasetMapper, check_datasets
from yolact_d2.data.annotations import decode_runs
from yolact_d2.data.augmentation import ExpandTransform
from yolact_d2.data.checks import usable_training_dicts
from yolact_d2.data.dataset_dicts import validate_dicts, warn_dropped

FAR = 30_000
GOOD = [
    annotation([20, 4, 8, 6]),
    annotation([2, 18, 9, 9], id=2, segmentation=rle(rectangle(2, 18, 9, 9))),
]
# Changes to a valid annotation, and what is used of it, as [x, y, width, height].
USED = [
    ({}, BOX),
    ({"segmentation": rle(rectangle(*BOX))}, BOX),
    ({"segmentation": rle(rectangle(*BOX), compressed=False)}, BOX),
    ({"segmentation": [[1, 2, 3, 4], polygon(*BOX)]}, BOX),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7], polygon(*BOX)]}, BOX),
    ({"segmentation": [polygon(*BOX), [6, 5, 8, 5, 9, 5]]}, BOX),
    # Partly outside.
    ({"bbox": [30, 20, 30, 20], "segmentation": [polygon(30, 20, 30, 20)]}, [30, 20, 10, 10]),
    ({"bbox": [-30, -25, 40, 35], "segmentation": [polygon(-30, -25, 40, 35)]}, [0, 0, 10, 10]),
    ({"bbox": [30, 20, 1e30, 10], "segmentation": [polygon(30, 20, 40, 10)]}, [30, 20, 10, 10]),
]
DROPPED = [
    ({"bbox": [5, 4, 0, 8]}, "empty_box"),
    ({"bbox": [5, 4, 10, -8]}, "empty_box"),
    ({"bbox": [WIDTH, 4, 5, 5]}, "box_outside"),
    ({"bbox": [5, -9, 5, 9]}, "box_outside"),
    ({"segmentation": [[5, 4, 15, 12, 10, 8]]}, "degenerate_polygon"),
    ({"segmentation": [[5, 4, 5, 4, 5, 4]]}, "degenerate_polygon"),
    ({"segmentation": rle(0 * rectangle(*BOX))}, "no_mask"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}, "no_mask"),
    ({"segmentation": [polygon(41, 4, 9, 9)]}, "mask_outside"),
    ({"segmentation": [polygon(5, 4, FAR, 8)]}, "mask_outside"),
    ({"segmentation": [polygon(*BOX), polygon(5, -FAR, 4, FAR + 8)]}, "mask_outside"),
    ({"segmentation": [[]]}, None),  # Detectron2 leaves it out when it reads the JSON
]
FATAL = [
    ({"bbox": [float("nan"), 4, 10, 8]}, "'bbox' is [nan"),
    ({"segmentation": []}, "'segmentation' is"),
    ({"segmentation": [polygon(*BOX), [5, 4, None, 4, 15, 12]]}, "polygon 1 is not a list of"),
    ({"segmentation": {"size": [10**6, 10**6], "counts": "0"}}, "the RLE is 1000000 x"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 8]}}, "cover 108 of 1200 pixels"),
    ({"iscrowd": 2}, "'iscrowd' is 2, not 0 or 1"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 1201]}}, "a run is negative"),
    ({"segmentation": polygon(*BOX)}, "polygon 0 is not a list"),
    ({"bbox": None}, "'bbox' is None"),
    ({"category_id": 3}, "there is no category with id 3"),
    ({"ignore": 1}, "'ignore' is set"),
]


@pytest.fixture
def dataset(tmp_path):
    """Registers an image with the good annotations and a changed one; returns the image's path."""

    def register(change, **more):
        path = tmp_path / f"{uuid.uuid4().hex}.png"  # all different: no warning is a repeated one
        changed = {**annotation(), **change, **more, "id": 3}
        register_json(tmp_path, coco_json([*GOOD, changed], file_name=path.name))
        return write_image(path)

    return register


@pytest.fixture
def cfg():
    cfg = base_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.MODEL.YOLACT.NUM_CLASSES = 2
    return cfg


def _trained_on(cfg):
    """What the mapper makes, without augmentation, of what the loader is given."""
    [record] = usable_training_dicts(cfg, NAME)
    return YOLACTDatasetMapper(True, augmentations=[], image_format="RGB", min_box_size=0)(record)


def _warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("crowd", [0, 1])
def test_used(dataset, cfg, caplog, crowd):
    for change, (x, y, w, h) in USED:
        dataset(change, iscrowd=crowd)
        check_datasets(cfg, "DATASETS.TRAIN")
        check_datasets(cfg, "DATASETS.TEST")
        instances = _trained_on(cfg)["instances"]
        assert instances.gt_iscrowd.tolist() == [False, False, bool(crowd)], change
        assert instances.gt_boxes.tensor[2].tolist() == [x, y, x + w, y + h], change
        assert (instances.gt_masks.tensor[2].numpy() == rectangle(x, y, w, h)).all(), change
    assert "left out" not in caplog.text


@pytest.mark.parametrize("crowd", [0, 1])
def test_dropped_and_counted(dataset, cfg, caplog, monkeypatch, crowd):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)  # a trainer unsets it
    for change, kind in DROPPED:
        path = dataset(change, iscrowd=crowd)
        expected = f": 1 {kind} (e.g. {path}, image 1: annotations[2]: "
        caplog.clear()
        check_datasets(cfg, "DATASETS.TRAIN")
        instances = _trained_on(cfg)["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[20, 4, 28, 10], [2, 18, 11, 27]], change
        [warning] = _warnings(caplog)  # of the check and the loader together
        if kind is None:
            assert "Filtered out 1 instances" in warning
            continue
        assert f"{NAME}: faulty annotations are left out of training{expected}" in warning
        caplog.clear()
        check_datasets(cfg, "DATASETS.TEST")
        [warning] = _warnings(caplog)
        assert f"{NAME}: faulty annotations count in COCO's evaluation{expected}" in warning


def test_fatal(dataset, cfg, tmp_path):
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        for change, reason in FATAL:
            path = dataset(change)
            name = f"{tmp_path / 'coco.json'}: {os.path.basename(path)}"
            with pytest.raises(ValueError) as error:
                check_datasets(cfg, key)
            # The second if Detectron2 cannot read the JSON.
            where = f"{path}, image 1: annotations[2]: ", f"{name}, image 1, annotation 3: "
            assert any(x in str(error.value) for x in where), change
            assert reason in str(error.value), change


def _dict(name, *boxes, mode=BoxMode.XYWH_ABS):
    annotations = [{**annotation(), "bbox": box, "bbox_mode": mode} for box in boxes]
    return {"file_name": name, "width": WIDTH, "height": HEIGHT, "annotations": annotations}


def test_dropped_annotations_are_counted_in_one_warning(caplog):
    flat, outside = [5, 4, 0, 8], [50, 4, 9, 8]
    dicts = [_dict("a", BOX, flat, flat), _dict("b", BOX), _dict("c", BOX, outside, flat)]
    dicts.append({"file_name": "d"})
    before = copy.deepcopy(dicts)
    kept, issues = validate_dicts(dicts)
    assert [len(r.get("annotations", [])) for r in kept] == [1, 1, 1, 0]
    assert kept[1] is dicts[1] and dicts == before
    warn_dropped(issues, "some", training=True)
    assert _warnings(caplog) == [
        "Dataset some: faulty annotations are left out of training: 3 empty_box (e.g. a: "
        "annotations[1]: the box is 0 x 8); 1 box_outside (e.g. c: annotations[1]: the box is "
        "(50, 4) to (59, 12), the image is 40 x 30)"
    ]


def test_boxes_by_corners_and_sizes_that_are_not_recorded(tmp_path):
    path = write_image(tmp_path / "a.png")
    for box, number in (([15, 12, 20, 20], 1), ([15, 12, 15, 20], 0), ([15, 12, 9, 20], 0)):
        [record], _ = validate_dicts([_dict("a", box, mode=BoxMode.XYXY_ABS)])
        assert len(record["annotations"]) == number
    for x, number in ((WIDTH - 1, 1), (WIDTH, 0)):
        annotations = _dict(path, [x, 4, 9, 9])["annotations"]
        [record], _ = validate_dicts([{"file_name": path, "annotations": annotations}])
        assert len(record["annotations"]) == number


def test_decoded_runs_are_those_that_were_encoded():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 5), (300, 200)):
        for density in (0.0, 0.01, 0.5, 1.0):
            mask = (rng.random((height, width)) < density).astype(np.uint8)
            runs = decode_runs(rle(mask))
            values = np.arange(len(runs)) % 2
            assert np.array_equal(np.repeat(values, runs), mask.ravel(order="F"))
    counts = rle(mask)["counts"]
    for wrong in ("\n", "a", "é", counts + "P", counts + "0a", counts[:-1]):
        with pytest.raises(ValueError):
            decode_runs({"size": [300, 200], "counts": wrong})


def _mapped(tmp_path, record, *augmentations):
    mapper = YOLACTDatasetMapper(
        True, augmentations=augmentations, image_format="RGB", min_box_size=0
    )
    annotations = [{**record, "bbox_mode": BoxMode.XYWH_ABS}]
    path = write_image(tmp_path / "a.png")
    return mapper({"file_name": path, "annotations": annotations})["instances"]


def test_mapper_clips_before_it_expands(tmp_path):
    expand = ExpandTransform(20, 10, 30, 40, WIDTH, HEIGHT, pad_value=(0.0, 0.0, 0.0))
    instances = _mapped(tmp_path, annotation([30, 20, 25, 30]), expand)
    assert instances.gt_boxes.tensor.tolist() == [[50, 30, 60, 40]]
    assert (instances.gt_masks.tensor[0].numpy() == rectangle(50, 30, 10, 10, size=(90, 80))).all()


def test_mapper_ignores_polygons_of_fewer_than_3_points(tmp_path):
    for bad in ([1, 2, 3, 4], [], [1, 2, 3, 4, 5, 6, 7]):
        instances = _mapped(tmp_path, annotation(segmentation=[bad, polygon(*BOX)]))
        assert (instances.gt_masks.tensor[0].numpy() == rectangle(*BOX)).all()
