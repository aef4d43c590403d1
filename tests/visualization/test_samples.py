"""Which images are drawn, and what is drawn on them."""

import numpy as np
import pytest
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from yolact_d2.visualization.samples import augmented_samples

CATEGORIES = [{"id": i, "name": f"class {i}"} for i in (7, 1000, 3)]


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


@pytest.fixture
def cfg(shapes_cfg):
    """Without random augmentation."""
    shapes_cfg.INPUT.IMAGE_SIZE = 40
    shapes_cfg.INPUT.RANDOM_FLIP = "none"
    shapes_cfg.INPUT.AUG.PHOTOMETRIC = shapes_cfg.INPUT.AUG.CROP = False
    return shapes_cfg


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each overlay_instances."""
    calls, draw = [], Visualizer.overlay_instances

    def record(self, **kwargs):
        calls.append({"image": self.img, **kwargs})
        return draw(self, **kwargs)

    monkeypatch.setattr(Visualizer, "overlay_instances", record)
    return calls


def test_classes_boxes_masks_and_colours(tmp_path, cfg, drawn):
    Image.new("RGB", (20, 20), (200, 100, 0)).save(tmp_path / "1.png")
    images = [{"id": 1, "file_name": "1.png", "width": 20, "height": 20}]
    boxes = {7: [0, 0, 10, 5], 1000: [10, 5, 5, 10], 3: [0, 10, 10, 10]}
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": box, "segmentation": [polygon(*box)],
         "iscrowd": int(i == 1000)}
        for i, box in boxes.items()
    ]  # fmt: skip
    ((name, drawing),) = augmented_samples(cfg, images, annotations, CATEGORIES, str(tmp_path), 5)
    assert name == "1.png" and drawing.shape == (40, 40, 3) and drawing.dtype == np.uint8
    (call,) = drawn
    assert call["labels"] == ["class 7", "class 1000 (crowd)", "class 3"]
    assert call["boxes"].tensor.tolist() == [[0, 0, 20, 10], [20, 10, 30, 30], [0, 20, 20, 40]]
    assert [mask.sum() for mask in call["masks"]] == [200, 200, 400]
    assert (call["image"] == (200, 100, 0)).all()


def test_bgr_is_converted(tmp_path, cfg, drawn):
    Image.new("RGB", (20, 20), (200, 100, 0)).save(tmp_path / "1.png")
    images = [{"id": 1, "file_name": "1.png", "width": 20, "height": 20}]
    cfg.INPUT.FORMAT = "BGR"
    list(augmented_samples(cfg, images, [], CATEGORIES, str(tmp_path), 1))
    assert (drawn[0]["image"] == (200, 100, 0)).all()


def test_samples_are_spread_evenly(tmp_path, cfg):
    for i in range(10):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 20} for i in range(10)]
    for num, expected in (
        (1, [0]),
        (2, [0, 5]),
        (3, [0, 3, 6]),
        (10, range(10)),
        (99, range(10)),
    ):
        samples = augmented_samples(cfg, images, [], CATEGORIES, str(tmp_path), num)
        assert [name for name, _ in samples] == [f"{i}.png" for i in expected]
    assert list(augmented_samples(cfg, [], [], CATEGORIES, str(tmp_path), 3)) == []
