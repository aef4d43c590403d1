"""Which images are drawn, and what is drawn on them."""

import numpy as np
import pytest
from coco_examples import annotation, write_image
from detectron2.utils.visualizer import Visualizer

from tools.inspect_dataset import augmented_samples

CATEGORIES = [{"id": i, "name": f"class {i}"} for i in (7, 1000, 3)]


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
    write_image(tmp_path / "1.png", (20, 20), (200, 100, 0))
    images = [{"id": 1, "file_name": "1.png", "width": 20, "height": 20}]
    boxes = {7: [0, 0, 10, 5], 1000: [10, 5, 5, 10], 3: [0, 10, 10, 10]}
    annotations = [
        annotation(box, id=i, category_id=i, iscrowd=int(i == 1000)) for i, box in boxes.items()
    ]
    for cfg.INPUT.FORMAT in ("RGB", "BGR"):
        samples = augmented_samples(cfg, images, annotations, CATEGORIES, str(tmp_path), 5)
        ((name, drawing),) = samples
        assert name == "1.png" and drawing.shape == (40, 40, 3) and drawing.dtype == np.uint8
        call = drawn.pop()
        assert call["labels"] == ["class 7", "class 1000 (crowd)", "class 3"]
        assert call["boxes"].tensor.tolist() == [[0, 0, 20, 10], [20, 10, 30, 30], [0, 20, 20, 40]]
        assert [mask.sum() for mask in call["masks"]] == [200, 200, 400]
        assert (call["image"] == (200, 100, 0)).all()


def test_samples_are_spread_evenly(tmp_path, cfg):
    for i in range(10):
        write_image(tmp_path / f"{i}.png", (20, 20))
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 20} for i in range(10)]
    tens = range(10)
    for num, expected in ((1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (10, tens), (99, tens)):
        samples = augmented_samples(cfg, images, [], CATEGORIES, str(tmp_path), num)
        assert [name for name, _ in samples] == [f"{i}.png" for i in expected]
    assert list(augmented_samples(cfg, [], [], CATEGORIES, str(tmp_path), 3)) == []
