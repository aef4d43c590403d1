"""Counts by hand, and objects that an input size loses."""

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from yolact_d2.data import YOLACTDatasetMapper
from yolact_d2.data.statistics import collect_statistics, format_statistics, too_small

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


def test_too_small_by_hand():
    # In an image of 200 x 100 at S = 100, widths halve and heights stay.
    sizes = np.array([[8.0, 50.0], [8.1, 4.1], [50.0, 4.0], [50.0, 50.0]])
    images = np.tile([200.0, 100.0], (4, 1))
    assert too_small(sizes, images, 100, 4.0).tolist() == [True, False, True, False]
    assert too_small(sizes, images, 101, 4.0).sum() == 0
    assert too_small(sizes, images, 50, 4.0).sum() == 3
    assert too_small(sizes, images, 100, 0.0).sum() == 0
    assert too_small(sizes[:0], images[:0], 100, 4.0).tolist() == []


def test_statistics_by_hand():
    statistics = collect_statistics(IMAGES, ANNOTATIONS, CATEGORIES, [100, 200], 4.0)
    assert [tuple(c) for c in statistics.classes] == [
        ("four", 4, 1, 1, 1, [0, 0]),
        ("none", 5, 0, 0, 0, [0, 0]),
        # At 100: 4 x 50, 25 x 4 and 4 x 50. At 200 all are twice as large.
        ("nine", 9, 2, 3, 0, [3, 0]),
        ("all", "", 2, 4, 1, [3, 0]),
    ]
    assert statistics.objects_per_image.tolist() == [2, 2, 0]
    assert statistics.image_sizes.tolist() == [[200, 100], [50, 80], [50, 80]]
    assert statistics.object_sizes.tolist() == [[8, 50], [50, 4], [2, 40], [40, 40]]


def test_too_small_is_what_the_mapper_drops(tmp_path, shapes_cfg):
    Image.new("RGB", (200, 100)).save(tmp_path / "1.png")
    shapes_cfg.INPUT.RANDOM_FLIP = "none"
    shapes_cfg.INPUT.AUG.PHOTOMETRIC = shapes_cfg.INPUT.AUG.CROP = False
    for size in (60, 80, 100, 128):
        rng = np.random.default_rng(size)
        boxes = [[*rng.uniform(0, 90, 2), *rng.uniform(0.5, 15, 2)] for _ in range(300)]
        annotations = [{"image_id": 1, "category_id": 9, "bbox": box} for box in boxes]
        statistics = collect_statistics(IMAGES[:1], annotations, CATEGORIES, [size], 4.0)
        shapes_cfg.INPUT.IMAGE_SIZE = size
        segmentation = {"segmentation": [[0, 0, 5, 0, 5, 5]], "bbox_mode": BoxMode.XYWH_ABS}
        record = {
            "file_name": str(tmp_path / "1.png"),
            "annotations": [{**a, **segmentation, "category_id": 0} for a in annotations],
        }
        kept = len(YOLACTDatasetMapper(shapes_cfg)(record)["instances"])
        assert statistics.classes[-1].num_lost == [300 - kept] and 0 < kept < 300


def test_report_has_the_numbers():
    statistics = collect_statistics(IMAGES, ANNOTATIONS, CATEGORIES, [100, 200], 4.0)
    rows = [line.split() for line in format_statistics(statistics, [100, 200]).splitlines()]
    assert ["class", "id", "images", "objects", "crowds", "lost", "100", "lost", "200"] in rows
    assert ["nine", "9", "2", "3", "0", "3", "0"] in rows
    assert ["all", "2", "4", "1", "3", "0"] in rows
    assert ["width", "of", "images,", "px", "50", "50", "200"] in rows


def test_report_of_nothing():
    report = format_statistics(collect_statistics([], [], [], [550], 4.0), [550])
    assert "0 images" in report and "0 objects" in report
