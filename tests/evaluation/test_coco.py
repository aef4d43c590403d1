"""COCO's AP against pycocotools, on datasets that pycocotools alone cannot evaluate, and with masks
that are ranked by their own scores."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from coco_examples import (
    NAME,
    annotation,
    coco_json,
    polygon,
    rectangle,
    register_dicts,
    register_json,
    rle,
)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from plain import base_cfg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact_d2.evaluation import InstanceCOCOEvaluator, MaskScoreCOCOEvaluator, build_evaluator

WIDTH, HEIGHT = 80, 60
SQUARE, BESIDE = [5, 5, 20, 20], [40, 5, 20, 20]
HUNDREDS = pytest.approx([100] * 3)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def register(folder, *boxes, **changes):
    """Register a COCO JSON of one image, whose objects fill boxes (x, y, w, h)."""
    records = [annotation(box, id=i + 1, **changes) for i, box in enumerate(boxes)]
    return register_json(folder, coco_json(records, width=WIDTH, height=HEIGHT))


def detections(boxes, scores=None, classes=None, mask_scores=None):
    """Detections of boxes (x, y, w, h) and of all of their pixels."""
    x, y, w, h = torch.tensor(boxes).reshape(-1, 4).float().unbind(1)
    masks = [torch.from_numpy(rectangle(*box, size=(WIDTH, HEIGHT))).bool() for box in boxes]
    scores = torch.tensor(scores or np.linspace(0.9, 0.5, len(boxes)).tolist())
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.stack([x, y, x + w, y + h], dim=1)),
        pred_masks=torch.stack(masks) if masks else torch.zeros(0, HEIGHT, WIDTH).bool(),
        scores=scores,
        mask_scores=torch.tensor(mask_scores) if mask_scores else scores,
        pred_classes=torch.tensor(classes or [0] * len(boxes), dtype=torch.int64),
    )


def evaluate(evaluator, *images):
    DatasetCatalog.get(NAME)  # sets the metadata, as in a loader
    evaluator.reset()
    for i, instances in enumerate(images):
        evaluator.process([{"image_id": i + 1}], [{"instances": instances}])
    return evaluator.evaluate()


def plain(path, results, task, max_dets=100):
    """The metrics of pycocotools for a JSON and results, as they are."""
    results = [{k: v for k, v in x.items() if task == "bbox" or k != "bbox"} for x in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        evaluation = COCOeval(coco, coco.loadRes(results), task)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def random_dataset(rng):
    """Several images and classes; ids with gaps; polygons and both kinds of RLE; crowds; objects
    that leave the image, and some without a usable mask; areas unlike those of the masks."""
    images, annotations, found = [], [], []
    for image_id in range(1, 6):
        images.append({"id": image_id, "file_name": "x", "width": WIDTH, "height": HEIGHT})
        boxes, classes = [], []
        for i in range(rng.integers(0, 9)):
            x, y, w, h = (int(v) for v in rng.integers([-9, -9, 2, 2], [70, 50, 40, 40]))
            mask = rectangle(x, y, w, h, size=(WIDTH, HEIGHT))
            odd, flat, line = polygon(x, y, w, h)[:7], [x, y, x + w, y, x, y], [x, y, x + 1, y + 1]
            segmentation = [
                [polygon(x, y, w, h)], rle(mask), rle(mask, compressed=False),
                [[odd, flat][i % 2]], [polygon(x, y, w, h), [odd, flat, line][i % 3]],
            ][rng.integers(5)]  # fmt: skip
            record = annotation(
                [x, y, w, h], id=1000 - 7 * len(annotations), image_id=image_id,
                category_id=int(rng.choice([3, 7, 1000])), segmentation=segmentation,
                area=float(w * h * rng.choice([0.1, 1, 10])), iscrowd=int(rng.random() < 0.2),
            )  # fmt: skip
            annotations.append(record)
            for _ in range(rng.integers(0, 3)):
                moved = np.array([x, y, w, h]) + rng.integers(-2, 3, 4)
                boxes.append([int(moved[0]), int(moved[1]), *map(int, moved[2:].clip(1))])
                classes.append(int(rng.choice([0, 1, 2])) if rng.random() < 0.2 else None)
                right = [3, 7, 1000].index(annotations[-1]["category_id"])
                classes[-1] = right if classes[-1] is None else classes[-1]
        found.append(detections(boxes, rng.random(len(boxes)).tolist(), classes))
    categories = [{"id": i, "name": f"class {i}"} for i in (7, 1000, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def test_equals_pycocotools_to_the_last_digit(tmp_path):
    for seed in range(8):
        coco, found = random_dataset(np.random.default_rng(seed))
        path = register_json(tmp_path, coco)
        results = evaluate(InstanceCOCOEvaluator(NAME, output_dir=str(tmp_path)), *found)
        both = evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path / "both")), *found)
        detected = json.loads((tmp_path / "coco_instances_results.json").read_text())
        for task in ("bbox", "segm"):
            expected = plain(path, detected, task)
            values = [x * 100 if x >= 0 else np.nan for x in expected.stats[:6]]
            assert 0 < values[0] < 100
            np.testing.assert_array_equal([results[task][key] for key in METRICS], values)
            np.testing.assert_array_equal([both[task][key] for key in METRICS], values)
            for i, name in enumerate(("class 3", "class 7", "class 1000")):
                precision = expected.eval["precision"][:, :, i, 0, -1]
                ap = precision[precision > -1].mean() * 100 if (precision > -1).any() else np.nan
                np.testing.assert_equal(results[task][f"AP-{name}"], ap)


def test_evaluator_of_a_config(tmp_path):
    register(tmp_path, SQUARE)
    cfg = base_cfg()
    for cfg.MODEL.YOLACT.MASK_IOU.ENABLED in (False, True):
        kind = (
            MaskScoreCOCOEvaluator if cfg.MODEL.YOLACT.MASK_IOU.ENABLED else InstanceCOCOEvaluator
        )
        assert type(build_evaluator(cfg, NAME, str(tmp_path))) is kind


def test_the_evaluator_type_of_a_dataset_is_followed_or_refused(tmp_path, monkeypatch):
    cfg = base_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    voc = {"dirname": str(tmp_path), "split": "val", "year": 2012, "thing_classes": []}
    monkeypatch.setitem(sys.modules, "lvis", None)
    for kind, expected in (
        ("pascal_voc", PascalVOCDetectionEvaluator),
        ("lvis", "pip install lvis"),
        ("cityscapes_instance", f"{NAME}.*'cityscapes_instance'.*coco, lvis, pascal_voc"),
    ):
        if NAME in MetadataCatalog:
            MetadataCatalog.remove(NAME)
        MetadataCatalog.get(NAME).set(evaluator_type=kind, **voc)
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                build_evaluator(cfg, NAME)
        else:
            assert type(build_evaluator(cfg, NAME)) is expected


def test_as_many_detections_count_as_the_model_may_give(tmp_path):
    boxes = [[x, y, 3, 3] for y in range(0, 48, 4) for x in range(0, 40, 4)]
    path = register(tmp_path, *boxes)
    cfg = base_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    for limit in (50, 120):
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
        results = evaluate(build_evaluator(cfg, NAME), detections(boxes[:limit]))
        detected = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
        for task in ("bbox", "segm"):
            expected = 100.0 if limit == len(boxes) else plain(path, detected, task).stats[0] * 100
            assert results[task]["AP"] == expected and (limit == len(boxes)) == (expected == 100)


def test_area_is_that_of_the_mask_unless_it_is_a_positive_number(tmp_path, caplog):
    small, large = [5, 5, 20, 20], [30, 5, 45, 45]
    values = [None, "", "400", [400.0], {}, True, -400, 0, float("nan"), float("inf"), "missing"]
    for number, value in enumerate(values):
        records = [annotation(box, id=i + 1, area=value) for i, box in enumerate((small, large))]
        if value == "missing":
            records = [
                {k: v for k, v in x.items() if k not in ("area", "iscrowd")} for x in records
            ]
        size = {"width": WIDTH, "height": HEIGHT}
        # Another file name, so that no warning is a repeated one.
        register_json(tmp_path, coco_json(records, file_name=f"{number}.png", **size))
        caplog.clear()
        results = evaluate(InstanceCOCOEvaluator(NAME), detections([small, large]))
        for task in ("bbox", "segm"):
            assert [results[task][key] for key in ("AP", "APs", "APm")] == HUNDREDS, value
            assert np.isnan(results[task]["APl"])
        warnings = [x for x in caplog.messages if x.startswith("Evaluation of")]
        if value == "missing":
            assert warnings == []
        else:
            assert len(warnings) == 1 and "2 bad_area" in warnings[0] and repr(value) in warnings[0]


def test_implausible_areas_and_annotation_id_0_are_used_and_counted(tmp_path, caplog):
    register(tmp_path, SQUARE, area=WIDTH * HEIGHT)
    results = evaluate(InstanceCOCOEvaluator(NAME), detections([SQUARE]))
    assert np.isnan(results["segm"]["APs"]) and results["segm"]["APm"] > 99  # as with pycocotools
    assert (
        "1 wrong_area (e.g. 1.png" in caplog.text
        and "is 4800, but the mask has 400 pixels" in caplog.text
    )
    register_json(tmp_path, coco_json([annotation(SQUARE, id=0)], width=WIDTH, height=HEIGHT))
    assert evaluate(InstanceCOCOEvaluator(NAME), detections([SQUARE]))["bbox"]["AP"] == 0
    assert "counts the object with the annotation id 0 as missed" in caplog.text


def test_masks_that_pycocotools_cannot_read_are_missed(tmp_path):
    faulty = annotation(SQUARE, segmentation=[[]])
    mended = annotation(BESIDE, id=2, segmentation=[[1, 2, 3, 4], polygon(*BESIDE)])
    register_json(tmp_path, coco_json([faulty, mended], width=WIDTH, height=HEIGHT))
    results = evaluate(InstanceCOCOEvaluator(NAME), detections([SQUARE, BESIDE]))
    assert results["bbox"]["AP"] == 100
    # The second has rank 2: precision 1/2 up to a recall of 1/2, at 51 of 101 places.
    assert results["segm"]["AP"] == pytest.approx(50 * 51 / 101)


def test_nothing_detected_is_0_for_boxes_and_masks(tmp_path):
    register(tmp_path, SQUARE)
    for kind in (InstanceCOCOEvaluator, MaskScoreCOCOEvaluator):
        results = evaluate(kind(NAME), detections([]))
        for task in ("bbox", "segm"):
            assert results[task]["AP"] == results[task]["AP50"] == results[task]["APs"] == 0
            assert np.isnan(results[task]["APl"])  # there are no large objects


def test_datasets_without_json_are_converted_at_each_evaluation(tmp_path):
    record = {"file_name": "a", "image_id": 1, "width": WIDTH, "height": HEIGHT}
    register_dicts(record, classes=["square"])
    for box, ap in ((BESIDE, 0), (SQUARE, 100)):
        # As Detectron2's evaluator leaves it.
        MetadataCatalog.get(NAME).json_file = str(tmp_path / f"{NAME}_coco_format.json")
        labels = annotation(box, bbox_mode=BoxMode.XYWH_ABS, category_id=0)
        labels["segmentation"] = [np.array(labels["segmentation"][0], np.float32)]
        record["annotations"] = [{k: v for k, v in labels.items() if k != "area"}]
        evaluator = InstanceCOCOEvaluator(NAME, output_dir=str(tmp_path))
        results = evaluate(evaluator, detections([SQUARE]))
        assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(ap)


def test_paths_and_names_of_json_files(tmp_path):
    path = tmp_path / f"{NAME}_coco_format.json"  # which is the user's own
    path.write_text(json.dumps(coco_json([annotation(SQUARE)], width=WIDTH, height=HEIGHT)))
    register_coco_instances(NAME, {}, path, tmp_path)
    DatasetCatalog.get(NAME)
    assert evaluate(InstanceCOCOEvaluator(NAME), detections([SQUARE]))["bbox"]["AP"] > 99


def test_classes_of_one_name_have_their_own_ap(tmp_path):
    records = [annotation(SQUARE), annotation(BESIDE, id=2, category_id=8)]
    coco = coco_json(records, width=WIDTH, height=HEIGHT)
    coco["categories"] = [{"id": i, "name": name} for i, name in ((1, "a"), (8, "a"), (9, 5))]
    register_json(tmp_path, coco)
    results = evaluate(InstanceCOCOEvaluator(NAME), detections([SQUARE]))["segm"]
    assert (results["AP-a (0)"], results["AP-a (1)"]) == pytest.approx((100, 0))
    assert np.isnan(results["AP-5"])


def test_boxes_are_ranked_by_scores_and_masks_by_mask_scores(tmp_path):
    register(tmp_path, SQUARE)
    # If the wrong detection is ranked first, precision is 1/2 at every recall.
    for boxes, scores, mask_scores, expected in (
        ([SQUARE, BESIDE], [0.9, 0.3], [0.2, 0.8], (100, 50)),
        ([BESIDE, SQUARE], [0.9, 0.3], [0.1, 0.3], (50, 100)),
        ([SQUARE, BESIDE], [0.9, 0.3], [0.8, 0.1], (100, 100)),
    ):
        found = detections(boxes, scores, mask_scores=mask_scores)
        results = evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path / "out")), found)
        assert (results["bbox"]["AP"], results["segm"]["AP"]) == pytest.approx(expected)
        assert found.scores.tolist() == pytest.approx(scores) and found.has("pred_masks")
        results = evaluate(InstanceCOCOEvaluator(NAME), found)
        assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(expected[0])


def test_result_files_hold_the_score_of_the_ranking(tmp_path):
    register(tmp_path, SQUARE)
    found = detections([SQUARE], [0.75], mask_scores=[0.25])
    evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path)), found)
    for task, score in (("bbox", 0.75), ("segm", 0.25)):
        results = (tmp_path / task / "coco_instances_results.json").read_text()
        [result] = json.loads(results)
        assert (result["score"], result["category_id"]) == (score, 1)
        assert ("segmentation" in result) == (task == "segm")


def test_model_without_mask_scores_is_refused(tmp_path):
    register(tmp_path, SQUARE)
    for field in ("mask_scores", "pred_masks"):
        found = detections([SQUARE])
        found.remove(field)
        with pytest.raises(ValueError, match="MODEL.YOLACT.MASK_IOU.ENABLED.*COCOEvaluator"):
            evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path)), found)
