"""Box AP ranked by scores and mask AP ranked by mask scores, on cases worked out by hand."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances

from yolact_d2.evaluation import MaskScoreCOCOEvaluator

NAME = "one_square"
SQUARE = [10, 20, 40, 50]  # XYXY


@pytest.fixture(autouse=True)
def dataset(tmp_path):
    """One 60 x 80 image with one square."""
    x1, y1, x2, y2 = SQUARE
    annotation = {
        "id": 1,
        "image_id": 7,
        "category_id": 3,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
    }
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [annotation],
        "categories": [{"id": 3, "name": "square"}],
    }
    (tmp_path / "one.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(tmp_path / "one.json"), str(tmp_path))
    DatasetCatalog.get(NAME)  # which fills in the metadata
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def detections(*rows):
    """Each row: whether it is the square or beside it, its score and its mask score."""
    boxes = torch.tensor([SQUARE if right else [50, 5, 70, 15] for right, _, _ in rows])
    masks = torch.zeros(len(rows), 60, 80, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist()):
        mask[y1:y2, x1:x2] = True
    return Instances(
        (60, 80),
        pred_boxes=Boxes(boxes.float()),
        scores=torch.tensor([score for _, score, _ in rows]),
        mask_scores=torch.tensor([mask_score for _, _, mask_score in rows]),
        pred_classes=torch.zeros(len(rows), dtype=torch.int64),
        pred_masks=masks,
    )


class Model(torch.nn.Module):
    def __init__(self, instances):
        super().__init__()
        self.instances = instances

    def forward(self, inputs):
        return [{"instances": self.instances} for _ in inputs]


def evaluate(evaluator, instances):
    loader = [[{"image_id": 7, "image": torch.zeros(3, 60, 80)}]]
    results = inference_on_dataset(Model(instances), loader, evaluator)
    return results["bbox"]["AP"], results["segm"]["AP"]


# If the wrong detection is ranked first, precision is 1/2 at every recall.
CASES = [
    ([(True, 0.9, 0.2), (False, 0.3, 0.8)], (100, 50)),
    ([(False, 0.9, 0.1), (True, 0.3, 0.3)], (50, 100)),
    ([(True, 0.9, 0.8), (False, 0.3, 0.1)], (100, 100)),
]


def test_boxes_are_ranked_by_scores_and_masks_by_mask_scores(tmp_path):
    for rows, expected in CASES:
        instances = detections(*rows)
        scores = instances.scores.clone()
        got = evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path / "out")), instances)
        assert got == pytest.approx(expected)
        assert torch.equal(instances.scores, scores) and instances.has("pred_masks")
        plain = evaluate(COCOEvaluator(NAME, output_dir=None), instances)
        assert plain == pytest.approx((expected[0], expected[0]))


def test_result_files_hold_the_score_of_the_ranking(tmp_path):
    instances = detections((True, 0.75, 0.25))
    evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path)), instances)
    found = {}
    for task in ("bbox", "segm"):
        found[task] = json.loads((tmp_path / task / "coco_instances_results.json").read_text())
    assert [x["score"] for x in found["bbox"]] == [0.75]
    assert [x["score"] for x in found["segm"]] == [0.25]
    assert found["segm"][0]["category_id"] == found["bbox"][0]["category_id"] == 3
    assert "segmentation" in found["segm"][0] and "segmentation" not in found["bbox"][0]


def test_model_without_mask_scores_is_refused(tmp_path):
    for field in ("mask_scores", "pred_masks"):
        instances = detections((True, 0.5, 0.5))
        instances.remove(field)
        with pytest.raises(ValueError, match="MODEL.YOLACT.MASK_IOU.ENABLED.*COCOEvaluator"):
            evaluate(MaskScoreCOCOEvaluator(NAME, str(tmp_path)), instances)
