"""COCO's AP against pycocotools, and on datasets that pycocotools alone cannot evaluate."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from coco_examples import polygon, rectangle, rle
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from plain import base_cfg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolact_d2.evaluation import InstanceCOCOEvaluator, MaskScoreCOCOEvaluator, build_evaluator

NAME = "test_evaluation"
WIDTH, HEIGHT = 80, 60
HUNDREDS = pytest.approx([100] * 3)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.fixture(autouse=True)
def forget():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def dataset(*boxes, **changes):
    """A COCO JSON of one image, whose objects are boxes (x, y, w, h) of the class 7."""
    annotations = [
        {
            "id": i + 1, "image_id": 1, "category_id": 7, "bbox": box, "area": box[2] * box[3],
            "iscrowd": 0, "segmentation": [polygon(*box)], **changes,
        }
        for i, box in enumerate(boxes)
    ]  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "square"}],
    }


def register(folder, coco):
    path = folder / "coco.json"
    path.write_text(json.dumps(coco))
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)
    register_coco_instances(NAME, {}, str(path), str(folder))
    DatasetCatalog.get(NAME)
    return path


def detections(boxes, scores=None, classes=None):
    """Detections of boxes (x, y, w, h) and of all of their pixels."""
    x, y, w, h = torch.tensor(boxes).reshape(-1, 4).float().unbind(1)
    masks = [torch.from_numpy(rectangle(*box, size=(WIDTH, HEIGHT))).bool() for box in boxes]
    scores = torch.tensor(scores or np.linspace(0.9, 0.5, len(boxes)).tolist())
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.stack([x, y, x + w, y + h], dim=1)),
        pred_masks=torch.stack(masks) if masks else torch.zeros(0, HEIGHT, WIDTH).bool(),
        scores=scores,
        mask_scores=scores,
        pred_classes=torch.tensor(classes or [0] * len(boxes), dtype=torch.int64),
    )


def evaluate(evaluator, *images):
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
            annotations.append(
                {
                    "id": 1000 - 7 * len(annotations), "image_id": image_id,
                    "category_id": int(rng.choice([3, 7, 1000])), "bbox": [x, y, w, h],
                    "area": float(w * h * rng.choice([0.1, 1, 10])), "segmentation": segmentation,
                    "iscrowd": int(rng.random() < 0.2),
                }
            )  # fmt: skip
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
        path = register(tmp_path, coco)
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


def test_as_many_detections_count_as_the_model_may_give(tmp_path):
    boxes = [[x, y, 3, 3] for y in range(0, 56, 4) for x in range(0, 76, 4)]
    assert len(boxes) > 250
    path = register(tmp_path, dataset(*boxes))
    cfg = base_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    for limit in (50, 100, 300):
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
        results = evaluate(build_evaluator(cfg, NAME), detections(boxes[:limit]))
        detected = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
        for task in ("bbox", "segm"):
            expected = 100.0 if limit == 300 else plain(path, detected, task).stats[0] * 100
            assert results[task]["AP"] == expected and (limit == 300) == (expected == 100)


def test_area_is_that_of_the_mask_unless_it_is_a_positive_number(tmp_path, caplog):
    small, large = [5, 5, 20, 20], [30, 5, 45, 45]
    values = [None, "", "400", [400.0], {}, True, -400, 0, float("nan"), float("inf"), "missing"]
    for number, value in enumerate(values):
        coco = dataset(small, large)
        coco["images"][0]["file_name"] = f"{number}.png"  # so that no warning is a repeated one
        for annotation in coco["annotations"]:
            annotation["area"] = value
            if value == "missing":
                del annotation["area"], annotation["iscrowd"]
        register(tmp_path, coco)
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


def test_implausible_areas_are_used_and_counted(tmp_path, caplog):
    register(tmp_path, dataset([5, 5, 20, 20], area=WIDTH * HEIGHT))
    results = evaluate(InstanceCOCOEvaluator(NAME), detections([[5, 5, 20, 20]]))
    assert np.isnan(results["segm"]["APs"]) and results["segm"]["APm"] > 99  # as with pycocotools
    assert "1 wrong_area (e.g. 1.png" in caplog.text and "is 4800, the mask has 400" in caplog.text


def test_annotation_id_0_is_warned_of(tmp_path, caplog):
    coco = dataset([5, 5, 20, 20])
    coco["annotations"][0]["id"] = 0
    register(tmp_path, coco)
    assert evaluate(InstanceCOCOEvaluator(NAME), detections([[5, 5, 20, 20]]))["bbox"]["AP"] == 0
    assert "counts the object with the annotation id 0 as missed" in caplog.text


def test_masks_that_pycocotools_cannot_read_are_missed(tmp_path):
    boxes = [[5, 5, 20, 20], [40, 5, 20, 20]]
    coco = dataset(*boxes)
    coco["annotations"][0]["segmentation"] = [[]]
    coco["annotations"][1]["segmentation"].insert(0, [1, 2, 3, 4])
    register(tmp_path, coco)
    results = evaluate(InstanceCOCOEvaluator(NAME), detections(boxes))
    assert results["bbox"]["AP"] == 100
    # The second has rank 2: precision 1/2 up to a recall of 1/2, at 51 of 101 places.
    assert results["segm"]["AP"] == pytest.approx(50 * 51 / 101)


def test_nothing_detected_is_0_for_boxes_and_masks(tmp_path):
    register(tmp_path, dataset([5, 5, 20, 20]))
    for kind in (InstanceCOCOEvaluator, MaskScoreCOCOEvaluator):
        results = evaluate(kind(NAME), detections([]))
        for task in ("bbox", "segm"):
            assert results[task]["AP"] == results[task]["AP50"] == results[task]["APs"] == 0
            assert np.isnan(results[task]["APl"])  # there are no large objects


def test_datasets_without_json_are_converted_at_each_evaluation(tmp_path):
    def dicts(box):
        annotation = {
            "bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0,
            "segmentation": [polygon(*box)],
        }  # fmt: skip
        size = {"width": WIDTH, "height": HEIGHT}
        return [{"file_name": "a", "image_id": 1, **size, "annotations": [annotation]}]

    labels = dicts([40, 5, 20, 20])
    DatasetCatalog.register(NAME, lambda: copy.deepcopy(labels))
    MetadataCatalog.get(NAME).thing_classes = ["square"]
    for box, ap in (([40, 5, 20, 20], 0), ([5, 5, 20, 20], 100)):
        labels[:] = dicts(box)
        evaluator = InstanceCOCOEvaluator(NAME, output_dir=str(tmp_path))
        results = evaluate(evaluator, detections([[5, 5, 20, 20]]))
        assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(ap)


def test_classes_of_one_name_have_their_own_ap(tmp_path):
    coco = dataset([5, 5, 20, 20], [40, 5, 20, 20])
    coco["categories"] += [{"id": 8, "name": "square"}, {"id": 9, "name": 5}]
    coco["annotations"][1]["category_id"] = 8
    register(tmp_path, coco)
    results = evaluate(InstanceCOCOEvaluator(NAME), detections([[5, 5, 20, 20]]))["segm"]
    assert (results["AP-square (0)"], results["AP-square (1)"]) == pytest.approx((100, 0))
    assert np.isnan(results["AP-5"])
