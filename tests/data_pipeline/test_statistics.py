"""Counts by hand, and objects that an input size loses."""

import numpy as np
from coco_examples import annotation, write_image
from detectron2.structures import BoxMode

from yolact_d2.data import YOLACTDatasetMapper
from yolact_d2.data.statistics import format_statistics, too_small

IMAGES = [
    {"id": 1, "file_name": "1.png", "width": 200, "height": 100},
    {"id": 2, "file_name": "2.png", "width": 50, "height": 80},
    {"id": 3, "file_name": "3.png", "width": 50, "height": 80},
]
CATEGORIES = [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}, {"id": 5, "name": "none"}]
ANNOTATIONS = [
    {"image_id": 1, "category_id": 9, "bbox": [0, 0, 8, 50]},
    {"image_id": 1, "category_id": 9, "bbox": [0, 0, 50, 4]},
    {"image_id": 2, "category_id": 9, "bbox": [-90, 10, 92, 40]},  # 2 pixels of it are visible
    {"image_id": 2, "category_id": 4, "bbox": [0, 0, 40, 40], "iscrowd": 0},
    {"image_id": 2, "category_id": 4, "bbox": [0, 0, 1, 1], "iscrowd": 1},
]
# At 100 the boxes of "nine" are 4 x 50, 25 x 4 and 4 x 50, at 200 twice as large.
REPORT = """
3 images, 1 of them without annotations, which training leaves out
4 objects and 1 crowd regions of 3 classes
 least median most
width of images, px 50 50 200
height of images, px 80 80 100
objects of an image 0 2 2
width of objects, px 2 24 50
height of objects, px 4 40 50
boxes smaller than 32 x 32 px: 3, larger than 96 x 96 px: 0
lost at S: not more than INPUT.MIN_BOX_SIZE wide or high in the S x S input
class id images objects crowds lost 100 lost 200
four 4 1 1 1 0 0
none 5 0 0 0 0 0
nine 9 2 3 0 3 0
all 2 4 1 3 0
"""


def test_report_by_hand():
    report = format_statistics(IMAGES, ANNOTATIONS, CATEGORIES, [100, 200], 4.0)
    rows = [line.split() for line in report.splitlines() if line]
    assert rows == [line.split() for line in REPORT.splitlines() if line]
    without_sizes = format_statistics(IMAGES, ANNOTATIONS, CATEGORIES, (), 4.0)
    assert "lost" not in without_sizes and without_sizes.split()[-4:] == ["all", "2", "4", "1"]
    nothing = format_statistics([], [], [], [550], 4.0)
    assert "0 images" in nothing and "0 objects" in nothing


def test_too_small_is_what_the_mapper_drops(tmp_path, shapes_cfg):
    write_image(tmp_path / "1.png", (200, 100))
    shapes_cfg.INPUT.RANDOM_FLIP = "none"
    shapes_cfg.INPUT.AUG.PHOTOMETRIC = shapes_cfg.INPUT.AUG.CROP = False
    for size, min_box_size in ((60, 4.0), (80, 4.0), (100, 4.0), (128, 7.0)):
        rng = np.random.default_rng(size)
        boxes = np.concatenate(
            [rng.uniform(0, 90, (300, 2)), rng.uniform(0.5, 15, (300, 2))], axis=1
        )
        num_lost = too_small(boxes[:, 2:], np.array([[200, 100]]), size, min_box_size).sum()
        shapes_cfg.INPUT.IMAGE_SIZE, shapes_cfg.INPUT.MIN_BOX_SIZE = size, min_box_size
        annotations = [
            annotation(box, category_id=0, bbox_mode=BoxMode.XYWH_ABS) for box in boxes.tolist()
        ]
        record = {"file_name": str(tmp_path / "1.png"), "annotations": annotations}
        kept = len(YOLACTDatasetMapper(shapes_cfg)(record)["instances"])
        assert num_lost == 300 - kept and 0 < kept < 300
