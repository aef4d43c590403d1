"""Predictor: what it finds, what its classes are called, and what it refuses."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from yolact_d2 import Predictor
from yolact_d2.inference.classes import class_metadata


@pytest.fixture
def cfg(shapes_cfg, tmp_path):
    """Of a small model with weights that find something everywhere."""
    shapes_cfg.INPUT.IMAGE_SIZE = 64
    shapes_cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = Predictor(shapes_cfg).model
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    shapes_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    return shapes_cfg


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    sizes = (40, 60), (64, 64), (50, 30)
    return [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]


def equal(first, second):
    return (
        len(first) == len(second) > 0
        and torch.equal(first.pred_boxes.tensor, second.pred_boxes.tensor)
        and torch.equal(first.scores, second.scores)
        and torch.equal(first.pred_masks, second.pred_masks)
    )


def test_finds_what_detectron2s_predictor_finds(cfg, images):
    predictor = Predictor(cfg, confidence_threshold=0)
    expected = DefaultPredictor(cfg)
    for image in images:
        assert equal(predictor(image), expected(image)["instances"].to("cpu"))


def test_a_batch_gives_what_its_images_give(cfg, images):
    predictor = Predictor(cfg, confidence_threshold=0)
    batch = predictor.predict(images)
    assert [found.image_size for found in batch] == [image.shape[:2] for image in images]
    assert all(equal(found, predictor(image)) for found, image in zip(batch, images))


def test_threshold_and_top_k_leave_the_best(cfg, images):
    scores = Predictor(cfg, confidence_threshold=0)(images[0]).scores
    threshold = float(scores[9])
    found = Predictor(cfg, confidence_threshold=threshold)(images[0])
    assert torch.equal(found.scores, scores[scores >= threshold])
    found = Predictor(cfg, confidence_threshold=0, top_k=3)(images[0])
    assert torch.equal(found.scores, scores[:3])
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100  # it is left alone


def test_drawing_is_a_copy_of_the_images_size(cfg, images):
    predictor = Predictor(cfg, confidence_threshold=0, top_k=3)
    image = images[0]
    before = image.copy()
    drawn = predictor.draw(image, predictor(image))
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (drawn != image).any() and (image == before).all()
    # Nothing found, nothing drawn, and the colours are where they were.
    assert (predictor.draw(image, predictor(image)[:0]) == image).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_wrong_image_is_named(cfg, image):
    with pytest.raises(ValueError, match=r"\(H, W, 3\), got \(4, 4"):
        Predictor(cfg)(image)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.WEIGHTS", "gone.pth", "MODEL.WEIGHTS: there is no file 'gone.pth'"),
        ("MODEL.YOLACT.NUM_CLASSES", 5, "4 classes.*5 classes"),
        ("INPUT.FORMAT", "L", "INPUT.FORMAT is 'L'"),
    ],
)
def test_wrong_config_is_named(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        Predictor(cfg)


def test_other_model_is_named():
    cfg = get_cfg()
    with pytest.raises(ValueError, match="META_ARCHITECTURE is GeneralizedRCNN, not YOLACT"):
        Predictor(cfg)


@pytest.mark.parametrize("threshold, top_k", [(-0.1, 0), (1.1, 0), (float("nan"), 0), (0.5, -1)])
def test_wrong_limits_are_named(cfg, threshold, top_k):
    with pytest.raises(ValueError, match="threshold is|top-k is"):
        Predictor(cfg, confidence_threshold=threshold, top_k=top_k)


def test_untrained_model_is_warned_of(shapes_cfg, caplog):
    Predictor(shapes_cfg)
    assert "MODEL.WEIGHTS is empty" in caplog.text


class TestClasses:
    def test_of_the_dataset(self, shapes_cfg):
        metadata = class_metadata(shapes_cfg)
        assert metadata.thing_classes == ["circle", "rectangle", "triangle", "star"]
        assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}

    def test_of_coco(self, shapes_cfg):
        shapes_cfg.merge_from_list(["DATASETS.TEST", ("coco_2017_val",)])
        shapes_cfg.MODEL.YOLACT.NUM_CLASSES = 80
        metadata = class_metadata(shapes_cfg)
        assert metadata.thing_classes[79] == "toothbrush"
        assert metadata.thing_dataset_id_to_contiguous_id[90] == 79

    def test_of_the_config(self, shapes_cfg):
        yolact = shapes_cfg.MODEL.YOLACT
        yolact.CLASS_NAMES, yolact.CATEGORY_IDS = list("abcd"), [3, 7, 8, 1000]
        metadata = class_metadata(shapes_cfg)
        assert metadata.thing_classes == list("abcd")
        assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 8: 2, 1000: 3}

    @pytest.mark.parametrize("datasets", [(), ("nobody_registered_it",), ("coco_2017_val",)])
    def test_unknown_ones_are_numbers(self, shapes_cfg, datasets):
        shapes_cfg.DATASETS.TRAIN, shapes_cfg.DATASETS.TEST = (), datasets
        metadata = class_metadata(shapes_cfg)
        assert metadata.get("thing_classes") is None
        assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}

    @pytest.mark.parametrize("key, value", [("CLASS_NAMES", ["a"]), ("CATEGORY_IDS", [1, 2, 3])])
    def test_wrong_number_is_named(self, shapes_cfg, key, value):
        shapes_cfg.MODEL.YOLACT[key] = value
        with pytest.raises(ValueError, match=f"{key} has {len(value)} entries.*NUM_CLASSES is 4"):
            class_metadata(shapes_cfg)
