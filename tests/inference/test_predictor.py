"""Predictor: its predictions, class names and errors."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from yolact_d2 import Predictor
from yolact_d2.inference.classes import class_metadata


@pytest.fixture
def cfg(shapes_cfg, tmp_path):
    """Config of a small model with random weights that finds something everywhere."""
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


def is_equal(first, second):
    return (
        len(first) == len(second) > 0
        and torch.equal(first.pred_boxes.tensor, second.pred_boxes.tensor)
        and torch.equal(first.scores, second.scores)
        and torch.equal(first.pred_masks, second.pred_masks)
    )


def test_predictions_are_those_of_detectron2s_predictor(cfg, images):
    predictor = Predictor(cfg, confidence_threshold=0)
    expected = DefaultPredictor(cfg)
    for image in images:
        assert is_equal(predictor(image), expected(image)["instances"].to("cpu"))


def test_batch_and_single_images_give_the_same_predictions(cfg, images):
    predictor = Predictor(cfg, confidence_threshold=0)
    batch = predictor.predict(images)
    assert [instances.image_size for instances in batch] == [image.shape[:2] for image in images]
    assert all(is_equal(instances, predictor(image)) for instances, image in zip(batch, images))


def test_threshold_and_top_k_keep_the_best(cfg, images):
    scores = Predictor(cfg, confidence_threshold=0)(images[0]).scores
    threshold = float(scores[9])
    instances = Predictor(cfg, confidence_threshold=threshold)(images[0])
    assert torch.equal(instances.scores, scores[scores >= threshold])
    cfg.freeze()  # as Detectron2's programs do
    instances = Predictor(cfg, confidence_threshold=0, top_k=3)(images[0])
    assert torch.equal(instances.scores, scores[:3])
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100  # the config is not changed


def test_drawing_is_a_copy_of_the_size_of_the_image(cfg, images):
    predictor = Predictor(cfg, confidence_threshold=0, top_k=3)
    image = images[0]
    before = image.copy()
    drawing = predictor.draw(image, predictor(image))
    assert drawing.shape == image.shape and drawing.dtype == np.uint8
    assert (drawing != image).any() and (image == before).all()
    # Without predictions nothing is drawn, and the channels keep their order.
    assert (predictor.draw(image, predictor(image)[:0]) == image).all()


def test_image_of_wrong_shape_is_an_error(cfg):
    for shape in ((4, 4), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"\(H, W, 3\), got \(4, 4"):
            Predictor(cfg)(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.WEIGHTS", "missing.pth", "MODEL.WEIGHTS: there is no file 'missing.pth'"),
        ("MODEL.YOLACT.NUM_CLASSES", 5, "4 classes.*5 classes"),
        ("INPUT.FORMAT", "L", "INPUT.FORMAT is 'L'"),
    ],
)
def test_wrong_config_is_an_error(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        Predictor(cfg)


def test_config_of_another_model_is_an_error():
    with pytest.raises(ValueError, match="META_ARCHITECTURE is GeneralizedRCNN, not YOLACT"):
        Predictor(get_cfg())


def test_wrong_threshold_or_top_k_is_an_error(shapes_cfg):
    for threshold, top_k in ((-0.1, 0), (1.1, 0), (float("nan"), 0), (0.5, -1)):
        with pytest.raises(ValueError, match="threshold is|top-k is"):
            Predictor(shapes_cfg, confidence_threshold=threshold, top_k=top_k)


def test_untrained_model_gives_a_warning(shapes_cfg, caplog):
    Predictor(shapes_cfg)
    assert "MODEL.WEIGHTS is empty" in caplog.text


def test_class_names_of_datasets(shapes_cfg):
    metadata = class_metadata(shapes_cfg)
    assert metadata.thing_classes == ["circle", "rectangle", "triangle", "star"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}
    shapes_cfg.merge_from_list(["DATASETS.TEST", ("coco_2017_val",)])
    shapes_cfg.MODEL.YOLACT.NUM_CLASSES = 80
    metadata = class_metadata(shapes_cfg)
    assert metadata.thing_classes[79] == "toothbrush"
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79


def test_class_names_of_the_config(shapes_cfg):
    yolact = shapes_cfg.MODEL.YOLACT
    yolact.CLASS_NAMES, yolact.CATEGORY_IDS = list("abcd"), [3, 7, 8, 1000]
    metadata = class_metadata(shapes_cfg)
    assert metadata.thing_classes == list("abcd")
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 8: 2, 1000: 3}


def test_unknown_classes_have_ids_only(shapes_cfg):
    for datasets in ((), ("not_registered",), ("coco_2017_val",)):
        shapes_cfg.DATASETS.TRAIN, shapes_cfg.DATASETS.TEST = (), datasets
        metadata = class_metadata(shapes_cfg)
        assert metadata.get("thing_classes") is None
        assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}


def test_wrong_number_of_class_names_is_an_error(shapes_cfg):
    shapes_cfg.MODEL.YOLACT.CATEGORY_IDS = [1, 2, 3]
    with pytest.raises(ValueError, match="CATEGORY_IDS has 3 entries.*NUM_CLASSES is 4"):
        class_metadata(shapes_cfg)
    shapes_cfg.MODEL.YOLACT.CLASS_NAMES = ["a"]
    with pytest.raises(ValueError, match="CLASS_NAMES has 1 entries.*NUM_CLASSES is 4"):
        class_metadata(shapes_cfg)
