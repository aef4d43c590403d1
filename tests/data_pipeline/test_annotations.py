"""Each fault of an annotation: the same outcome in training and in evaluation."""

import copy
import json
import logging
import os
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from plain import base_cfg
from pycocotools import mask as mask_util

from yolact_d2.data import YOLACTDatasetMapper, check_datasets, drop_unusable
from yolact_d2.data.annotations import why_unusable
from yolact_d2.data.augmentation import ExpandTransform
from yolact_d2.evaluation import MaskScoreCOCOEvaluator, UsableCOCOEvaluator, build_evaluator

NAME = "bad_annotations"
WIDTH, HEIGHT = 40, 30
BOX = [5, 4, 10, 8]


def _polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _mask(x, y, w, h, size=(WIDTH, HEIGHT)):
    mask = np.zeros(size[::-1], np.uint8)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    return mask


def _rle(mask, compressed=True):
    if compressed:
        encoded = mask_util.encode(np.asfortranarray(mask))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def _object(box, **kwargs):
    x, y, w, h = box
    return {
        "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box, "area": w * h,
        "segmentation": [_polygon(*box)], **kwargs,
    }  # fmt: skip


GOOD = [
    _object([20, 4, 8, 6], id=1),
    _object([2, 18, 9, 9], id=2, segmentation=_rle(_mask(2, 18, 9, 9))),
]
FAR = 30_000

# What is changed of a sound object, and the outcome: what is used of it, as [x, y, width, height].
USED = {
    "nothing": ({}, BOX),
    "RLE": ({"segmentation": _rle(_mask(*BOX))}, BOX),
    "RLE that is not compressed": ({"segmentation": _rle(_mask(*BOX), False)}, BOX),
    "one of two polygons has 2 points": ({"segmentation": [[1, 2, 3, 4], _polygon(*BOX)]}, BOX),
    "one of two polygons has half a point": (
        {"segmentation": [[1, 2, 3, 4, 5, 6, 7], _polygon(*BOX)]}, BOX
    ),
    "one of two polygons has no area": (
        {"segmentation": [_polygon(*BOX), [6, 5, 8, 5, 9, 5]]}, BOX
    ),
    "partly outside, right and below": (
        {"bbox": [30, 20, 30, 20], "segmentation": [_polygon(30, 20, 30, 20)]}, [30, 20, 10, 10]
    ),
    "mostly outside, left and above": (
        {"bbox": [-30, -25, 40, 35], "segmentation": [_polygon(-30, -25, 40, 35)]}, [0, 0, 10, 10]
    ),
    "box far outside on one side": (
        {"bbox": [30, 20, 1e30, 10], "segmentation": [_polygon(30, 20, 40, 10)]}, [30, 20, 10, 10]
    ),
}  # fmt: skip

LEFT_OUT = {
    "box without width": ({"bbox": [5, 4, 0, 8]}, "a box without area"),
    "box of negative height": ({"bbox": [5, 4, 10, -8]}, "a box without area"),
    "box to the right": ({"bbox": [WIDTH, 4, 5, 5]}, "a box outside the image"),
    "box above": ({"bbox": [5, -9, 5, 9]}, "a box outside the image"),
    "polygon of 2 points": ({"segmentation": [[5, 4, 15, 12]]}, "no polygon of 3 or more points"),
    "polygon of none": ({"segmentation": [[]]}, "no polygon of 3 or more points"),
    "polygon of 3.5 points": (
        {"segmentation": [[5, 4, 15, 4, 15, 12, 5]]}, "no polygon of 3 or more points"
    ),
    "polygon in a line": ({"segmentation": [[5, 4, 15, 12, 10, 8]]}, "a mask without area"),
    "polygon in a point": ({"segmentation": [[5, 4, 5, 4, 5, 4]]}, "a mask without area"),
    "empty RLE": ({"segmentation": _rle(0 * _mask(*BOX))}, "a mask without area"),
    "empty RLE that is not compressed": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},
        "a mask without area",
    ),
    "polygon beside the image": (
        {"segmentation": [_polygon(41, 4, 9, 9)]}, "a mask outside the image"
    ),
    "polygon far to the right": (
        {"segmentation": [_polygon(5, 4, FAR, 8)]}, "a mask far outside the image"
    ),
    "polygon far above": (
        {"segmentation": [_polygon(*BOX), _polygon(5, -FAR, 4, FAR + 8)]},
        "a mask far outside the image",
    ),
    "both": ({"bbox": [5, 4, 0, 8], "segmentation": [[1, 2]]}, "no polygon of 3 or more points"),
}  # fmt: skip

NAN, INF = float("nan"), float("inf")
REFUSED = {
    "box of three": ({"bbox": [5, 4, 10]}, "the bbox [5, 4, 10]"),
    "box of five": ({"bbox": [5, 4, 10, 8, 1]}, "the bbox [5, 4, 10, 8, 1]"),
    "box of texts": ({"bbox": ["5", "4", "10", "8"]}, "the bbox ['5'"),
    "box that is not finite": ({"bbox": [5, 4, INF, 8]}, "the bbox [5, 4, inf, 8]"),
    "box of NaN": ({"bbox": [NAN, 4, 10, 8]}, "the bbox [nan"),
    "no mask": ({"segmentation": None}, "no 'segmentation'"),
    "empty list of polygons": ({"segmentation": []}, "no 'segmentation'"),
    "polygon of NaN": ({"segmentation": [[NAN, 4, 15, 4, 15, 12]]}, "not a list of finite numbers"),
    "polygon of infinity": (
        {"segmentation": [[INF, 4, 15, 4, -INF, 12]]}, "not a list of finite numbers"
    ),
    "polygon of texts": ({"segmentation": [list("546789")]}, "not a list of finite numbers"),
    "polygon of points": (
        {"segmentation": [[[5, 4], [15, 4], [15, 12], [1, 2], [3, 4], [5, 6]]]},
        "not a list of finite numbers",
    ),
    "second polygon of null": (
        {"segmentation": [_polygon(*BOX), [5, 4, None, 4, 15, 12]]}, "not a list of finite numbers"
    ),
    "RLE of another size": (
        {"segmentation": _rle(_mask(*BOX, size=(HEIGHT, WIDTH)))},
        f"an RLE of {HEIGHT} x {WIDTH} pixels in an image of {WIDTH} x {HEIGHT}",
    ),
    "RLE that claims to be huge": (
        {"segmentation": {"size": [10**6, 10**6], "counts": "0"}}, "an RLE of 1000000 x"
    ),
    "RLE of too few runs": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 8]}}, "cover 108 of 1200 pixels"
    ),
    "RLE of too many runs": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0`d0" * 5}}, "pixels"
    ),
    "RLE of other characters": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "z~~"}}, "'counts' has characters"
    ),
    "crowd flag of text": ({"iscrowd": "0"}, "the iscrowd '0', not 0 or 1"),
    "crowd flag of 2": ({"iscrowd": 2}, "the iscrowd 2, not 0 or 1"),
}  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    """Registers an image with the good objects and a changed one, and returns its path."""
    path = tmp_path / f"{uuid.uuid4().hex}.png"  # no two alike: warnings are not repeated

    def register(change, **more):
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        changed = {**_object(BOX), **change, **more, "id": 3}
        coco = {
            "images": [{"id": 1, "file_name": path.name, "width": WIDTH, "height": HEIGHT}],
            "annotations": [*copy.deepcopy(GOOD), changed],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        register_coco_instances(NAME, {}, str(tmp_path / "coco.json"), str(tmp_path))
        return str(path)

    yield register
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg():
    cfg = base_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.MODEL.YOLACT.NUM_CLASSES = 1
    return cfg


def _trained_on():
    """What the mapper gives, without augmentation, of what the loader is given."""
    [record] = drop_unusable(get_detection_dataset_dicts([NAME]))
    return YOLACTDatasetMapper(augmentations=[], image_format="RGB", min_box_size=0)(record)


def _aps(evaluator, boxes):
    """AP of boxes and of masks, if boxes (x, y, w, h) and their pixels are found."""
    found = Instances((HEIGHT, WIDTH))
    x, y, w, h = torch.tensor(boxes).float().unbind(1)
    found.pred_boxes = Boxes(torch.stack([x, y, x + w, y + h], dim=1))
    found.pred_masks = torch.stack([torch.from_numpy(_mask(*box)).bool() for box in boxes])
    found.scores = found.mask_scores = torch.linspace(0.9, 0.5, len(boxes))
    found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    results = evaluator.evaluate()
    return results["bbox"]["AP"], results["segm"]["AP"]


def _evaluators(folder):
    return (
        UsableCOCOEvaluator(NAME, output_dir=str(folder), distributed=False),
        MaskScoreCOCOEvaluator(NAME, str(folder), distributed=False),
    )


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("kind", USED)
def test_used(dataset, cfg, tmp_path, caplog, kind, crowd):
    change, (x, y, w, h) = USED[kind]
    dataset(change, iscrowd=crowd)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        check_datasets(cfg, key)
    instances = _trained_on()["instances"]
    assert instances.gt_iscrowd.tolist() == [False, False, bool(crowd)]
    assert instances.gt_boxes.tensor[2].tolist() == [x, y, x + w, y + h]
    assert (instances.gt_masks.tensor[2].numpy() == _mask(x, y, w, h)).all()
    boxes = [a["bbox"] for a in GOOD]
    for evaluator in _evaluators(tmp_path):
        assert _aps(evaluator, [*boxes, [x, y, w, h]]) == pytest.approx((100, 100))
        missed = 100 if crowd else pytest.approx(2 / 3 * 100, abs=1)
        assert _aps(evaluator, boxes) == (missed, missed)
    assert "leaves out" not in caplog.text


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("kind", LEFT_OUT)
def test_left_out_and_counted(dataset, cfg, tmp_path, caplog, kind, crowd):
    change, reason = LEFT_OUT[kind]
    path = dataset(change, iscrowd=crowd)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        check_datasets(cfg, key)
    caplog.clear()
    instances = _trained_on()["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[20, 4, 28, 10], [2, 18, 11, 27]]
    [warning] = _warnings(caplog)
    if reason == "no polygon of 3 or more points":  # Detectron2 knows of these
        assert "Filtered out 1 instances" in warning
    else:
        assert f"training leaves out: 1: 1 with {reason} (as in {path})" in warning
    caplog.clear()
    boxes = [a["bbox"] for a in GOOD]
    for evaluator in _evaluators(tmp_path):
        assert _aps(evaluator, boxes) == pytest.approx((100, 100))
    [warning] = [w for w in _warnings(caplog) if "Filtered out" not in w]  # of three evaluators
    assert f"{NAME} that evaluation leaves out: 1: 1 with {reason} (as in " in warning
    assert f"(as in {os.path.basename(path)})" in warning


def _warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(dataset, cfg, kind):
    change, reason = REFUSED[kind]
    path = dataset(change)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        with pytest.raises(ValueError) as error:
            check_datasets(cfg, key)
        assert f"{path}: object 2 (from 0) has" in str(error.value) and reason in str(error.value)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 1201]}}, "a list of lengths"),
        ({"segmentation": {"size": [10**6] * 2, "counts": [10**12]}}, "an RLE of 1000000 x"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "an RLE that is none"),
        ({"segmentation": {"size": HEIGHT, "counts": [1]}}, "an RLE that is none"),
        ({"segmentation": _polygon(*BOX)}, "a polygon that is not a list"),
        ({"bbox": None}, "no 'bbox'"),
        ({"bbox": []}, "the bbox []"),
        ({"category_id": "1"}, "category_id 1, and there is none"),
        ({"category_id": 2}, "category_id 2, and there is none"),
        ({"ignore": 1}, "'ignore' set"),
    ],
)
def test_what_detectron2_cannot_read_is_named(dataset, cfg, change, reason):
    path = os.path.join(os.path.dirname(dataset(change)), "coco.json")
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        with pytest.raises(ValueError) as error:
            check_datasets(cfg, key)
        assert f"{path}: annotation 3 has" in str(error.value) and reason in str(error.value)


@pytest.mark.parametrize("category", [True, 0.0, "0"])
def test_category_ids_of_other_datasets_are_whole_numbers(tmp_path, cfg, category):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    annotation = {**_object(BOX), "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [annotation]}
    DatasetCatalog.register(NAME, lambda: [record])
    MetadataCatalog.get(NAME).thing_classes = ["thing"]
    try:
        with pytest.raises(ValueError, match="a.png: object 0 .* category_id"):
            check_datasets(cfg, "DATASETS.TRAIN")
        annotation["category_id"] = np.int64(0)
        check_datasets(cfg, "DATASETS.TRAIN")
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def test_plain_coco_evaluation_counts_what_is_left_out_as_missed(dataset, tmp_path):
    """Why there is an evaluator of our own."""
    dataset({"segmentation": [[5, 4, 15, 12, 10, 8]]})
    DatasetCatalog.get(NAME)
    evaluator = COCOEvaluator(NAME, output_dir=str(tmp_path), distributed=False)
    box_ap, mask_ap = _aps(evaluator, [*(a["bbox"] for a in GOOD), BOX])
    assert box_ap == pytest.approx(100) and mask_ap < 70


@pytest.mark.parametrize("mask_iou", [False, True])
def test_evaluator_of_a_config(dataset, cfg, tmp_path, mask_iou):
    dataset({})
    DatasetCatalog.get(NAME)
    cfg.OUTPUT_DIR, cfg.MODEL.YOLACT.MASK_IOU.ENABLED = str(tmp_path / "out"), mask_iou
    evaluator = build_evaluator(cfg, NAME)
    assert type(evaluator) is (MaskScoreCOCOEvaluator if mask_iou else UsableCOCOEvaluator)
    evaluator.reset()
    _aps(evaluator, [a["bbox"] for a in GOOD])
    folder = tmp_path / "out" / "inference" / ("segm" if mask_iou else "")
    assert (folder / "coco_instances_results.json").exists()


def test_many_faults_are_one_warning(caplog):
    def record(name, *changes):
        sound = {**_object(BOX), "bbox_mode": BoxMode.XYWH_ABS}
        annotations = [{**sound, **change} for change in ({}, *changes)]
        return {"file_name": name, "width": WIDTH, "height": HEIGHT, "annotations": annotations}

    flat, outside = {"bbox": [5, 4, 0, 8]}, {"bbox": [50, 4, 9, 8]}
    dicts = [record("a", flat, flat), record("b"), record("c", outside, flat), {"file_name": "d"}]
    before = copy.deepcopy(dicts)
    kept = drop_unusable(dicts)
    assert [len(r.get("annotations", [])) for r in kept] == [1, 1, 1, 0]
    assert kept[1] is dicts[1] and dicts == before
    assert _warnings(caplog) == [
        "Annotations that training leaves out: 4: 3 with a box without area (as in a), "
        "1 with a box outside the image (as in c)"
    ]


def test_boxes_by_corners(tmp_path):
    record = {
        "file_name": "a", "width": WIDTH, "height": HEIGHT,
        "annotations": [{**_object([15, 12, 20, 20]), "bbox_mode": BoxMode.XYXY_ABS}],
    }  # fmt: skip
    for box, number in (([15, 12, 20, 20], 1), ([15, 12, 15, 20], 0), ([15, 12, 9, 20], 0)):
        record["annotations"][0]["bbox"] = box
        assert len(drop_unusable([record])[0]["annotations"]) == number


def test_size_that_is_not_recorded_is_read(tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    for x, number in ((WIDTH - 1, 1), (WIDTH, 0)):
        annotation = {**_object([x, 4, 9, 9]), "bbox_mode": BoxMode.XYWH_ABS}
        annotation["segmentation"] = [_polygon(*BOX)]
        [record] = drop_unusable([{"file_name": path, "annotations": [annotation]}])
        assert len(record["annotations"]) == number


def test_ids_may_start_at_0(dataset, tmp_path):
    """Which COCO's API takes for no object."""
    dataset({})
    coco = json.loads((tmp_path / "coco.json").read_text())
    for i, annotation in enumerate(coco["annotations"]):
        annotation["id"] = i
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    DatasetCatalog.get(NAME)
    boxes = [*(a["bbox"] for a in GOOD), BOX]
    for evaluator in _evaluators(tmp_path):
        assert _aps(evaluator, boxes) == pytest.approx((100, 100))
    plain = COCOEvaluator(NAME, output_dir=str(tmp_path), distributed=False)
    assert _aps(plain, boxes)[0] < 80


def test_coco_rounding_is_not_touched_in_evaluation(dataset):
    """Boxes that leave the image by up to a pixel stay, so that published APs stay."""
    box = [30, 20, 10.9, 10.5]
    dataset({"bbox": box, "segmentation": [_polygon(*box)]})
    DatasetCatalog.get(NAME)
    changed = UsableCOCOEvaluator(NAME)._coco_api.anns[3]
    assert changed["bbox"] == box and changed["segmentation"] == [_polygon(*box)]


def test_polygon_that_crosses_itself_has_area():
    crossing = _object(BOX, segmentation=[[5, 4, 15, 4, 5, 12, 15, 12]])
    assert why_unusable(crossing, (WIDTH, HEIGHT)) is None


def _mapped(tmp_path, annotation, *augmentations):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    annotation = {**annotation, "bbox_mode": BoxMode.XYWH_ABS}
    mapper = YOLACTDatasetMapper(augmentations=augmentations, image_format="RGB", min_box_size=0)
    record = {"file_name": str(tmp_path / "a.png"), "annotations": [annotation]}
    return mapper(record)["instances"]


def test_what_is_outside_the_image_is_not_on_the_canvas(tmp_path):
    expand = ExpandTransform(20, 10, 30, 40, WIDTH, HEIGHT, pad_value=(0.0, 0.0, 0.0))
    instances = _mapped(tmp_path, _object([30, 20, 25, 30]), expand)
    assert instances.gt_boxes.tensor.tolist() == [[50, 30, 60, 40]]
    assert (instances.gt_masks.tensor[0].numpy() == _mask(50, 30, 10, 10, size=(90, 80))).all()


@pytest.mark.parametrize("bad", [[1, 2, 3, 4], [], [1, 2, 3, 4, 5, 6, 7]])
def test_polygons_that_are_none_are_left_out_of_a_mask(tmp_path, bad):
    """Of a COCO JSON, Detectron2 leaves them out; of other datasets, nobody does."""
    instances = _mapped(tmp_path, _object(BOX, segmentation=[bad, _polygon(*BOX)]))
    assert (instances.gt_masks.tensor[0].numpy() == _mask(*BOX)).all()
