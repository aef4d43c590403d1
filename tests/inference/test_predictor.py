"""Predictor: its predictions, class names and errors."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.catalog import Metadata
from detectron2.engine import DefaultPredictor

from yolact_d2 import Predictor, model_zoo
from yolact_d2.inference import drawing_threshold
from yolact_d2.inference.classes import class_metadata, find_classes


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


def test_images_and_batches_give_the_predictions_of_detectron2s_predictor(cfg, images):
    predictor, default_predictor = Predictor(cfg, confidence_threshold=0), DefaultPredictor(cfg)
    for image, instances in zip(images, predictor.predict(images)):
        assert instances.image_size == image.shape[:2]
        expected = default_predictor(image)["instances"].to("cpu")
        assert is_equal(instances, expected) and is_equal(predictor(image), expected)


def test_embedmask_sees_images_at_the_size_of_its_config(images):
    cfg = model_zoo.get_config("embedmask_shapes", opts=["MODEL.DEVICE", "cpu"])
    cfg.MODEL.EMBEDMASK.CLASS_SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 80
    predictor, default_predictor = Predictor(cfg), DefaultPredictor(cfg)
    default_predictor.model.load_state_dict(predictor.model.state_dict())
    for image in images:
        instances = predictor(image)
        assert instances.image_size == image.shape[:2]
        assert is_equal(instances, default_predictor(image)["instances"])
    found = Predictor(cfg, confidence_threshold=float(instances.scores[4]))
    found.model.load_state_dict(predictor.model.state_dict())
    assert torch.equal(found(images[-1]).scores, instances.scores[:5])


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


def test_paths_are_taken_and_single_images_are_no_batch(cfg, images, tmp_path):
    predictor, image = Predictor(cfg, top_k=3), images[0]
    cv2.imwrite(str(tmp_path / "a.png"), image)
    expected = predictor(image)
    assert is_equal(predictor(tmp_path / "a.png"), expected)
    assert is_equal(predictor.predict([image, str(tmp_path / "a.png")])[1], expected)
    np.random.seed(0)  # for the colours
    drawing = predictor.draw(image, expected)
    np.random.seed(0)
    assert np.array_equal(predictor.draw(tmp_path / "a.png", expected), drawing)
    assert predictor.predict([]) == []
    for batch in (image, image[:, :, 0], str(tmp_path / "a.png"), tmp_path / "a.png", None):
        with pytest.raises(ValueError, match="predict takes a list of images, not a"):
            predictor.predict(batch)


def test_threshold_of_the_config_is_the_default(cfg, images):
    scores = Predictor(cfg)(images[0]).scores
    assert len(scores) == 100
    threshold = cfg.MODEL.YOLACT.SCORE_THRESH_TEST = float(scores[9])
    expected = scores[scores >= threshold]
    assert torch.equal(Predictor(cfg)(images[0]).scores, expected)
    # The programs' own default counts only where the config has none.
    assert drawing_threshold(cfg, None, default=0.5) == threshold
    assert drawing_threshold(cfg, 0.0, default=0.5) == 0.0
    cfg.MODEL.YOLACT.SCORE_THRESH_TEST = 0.0
    assert drawing_threshold(cfg, None, default=0.5) == 0.5


def test_chosen_classes_are_kept(cfg, images):
    instances = Predictor(cfg)(images[0])
    # The best K are those of these classes, not those of them among the best.
    both = ["star", "circle"]
    for classes, numbers, top_k in ((both, [0, 3], 0), ("star", [3], 2), ([3], [3], 0)):
        expected = instances[np.isin(instances.pred_classes, numbers)]
        assert 2 < len(expected) < 100
        found = Predictor(cfg, classes=classes, top_k=top_k)(images[0])
        assert is_equal(found, expected[: top_k or None])


def test_classes_by_name_and_number():
    named = Metadata(thing_classes=["traffic light", "3", "cat", "cat"])
    assert find_classes(["traffic light", "3"], named, 4) == [0, 1]
    assert find_classes(["cat", 0], named, 4) == [2, 3, 0]
    assert find_classes(["3", 2], Metadata(), 4) == [3, 2]
    for wanted, metadata, message in (
        ("dog", named, "no class 'dog': the model's classes are traffic light, 3, cat, cat"),
        ("2", named, "no class '2'"),
        (4, named, "no class 4"),
        ("cat", Metadata(), "'cat': the model's class names are unknown, .* are 0, 1, 2, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            find_classes([wanted], metadata, 4)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.WEIGHTS", "missing.pth", "MODEL.WEIGHTS: there is no file 'missing.pth'"),
        ("MODEL.YOLACT.NUM_CLASSES", 5, "4 classes.*5 classes"),
        ("MODEL.PIXEL_MEAN", [1.0], "PIXEL_MEAN has 1 values and MODEL.PIXEL_STD 3"),
        ("MODEL.PIXEL_STD", [1.0] * 4, "MODEL.PIXEL_STD 4; for INPUT.FORMAT 'RGB' both have 3"),
        ("INPUT.FORMAT", "HSV", "INPUT.FORMAT is 'HSV', not one of: RGB, BGR, L"),
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


def test_class_names_of_datasets_and_of_the_config(shapes_cfg):
    shapes, coco = class_metadata(shapes_cfg), shapes_cfg.clone()
    assert shapes.thing_classes == ["circle", "rectangle", "triangle", "star"]
    assert shapes.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}
    coco.DATASETS.TEST, coco.MODEL.YOLACT.NUM_CLASSES = ("coco_2017_val",), 80
    assert class_metadata(coco).thing_classes[79] == "toothbrush"
    assert class_metadata(coco).thing_dataset_id_to_contiguous_id[90] == 79
    yolact = shapes_cfg.MODEL.YOLACT
    yolact.CLASS_NAMES, yolact.CATEGORY_IDS = list("abcd"), [3, 7, 8, 1000]
    named = class_metadata(shapes_cfg)
    assert named.thing_classes == list("abcd")
    assert named.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 8: 2, 1000: 3}


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
