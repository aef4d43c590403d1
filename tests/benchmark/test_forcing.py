"""Forced detections, on small models of each architecture."""

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from small_models import CASCADE, FASTER_RCNN, MASK_RCNN, RETINANET, YOLACT

from yolact_d2.benchmark.anatomy import num_classes
from yolact_d2.benchmark.forcing import balance_features
from yolact_d2.benchmark.pictures import generate_picture
from yolact_d2.benchmark.planted import random_boxes
from yolact_d2.benchmark.runner import Runner
from yolact_d2.benchmark.specs import parse_models
from yolact_d2.modeling.masks import scale_boxes

SIZES = [(60, 90), (80, 64), (60, 90)]
PICTURES = [generate_picture(*size, seed=i) for i, size in enumerate(SIZES)]


def runner_of(text, number=8, variant="float32"):
    runner = Runner(parse_models([text], device="cpu")[0], variant, number)
    runner.calibrate(PICTURES)
    return runner


def spy(runner):
    """The numbers of candidates that reach the last NMS from now on."""
    place, seen = runner.anatomy.final_nms, []
    original = place.get()

    def count(boxes, *args, **kwargs):
        seen.append(len(boxes))
        return original(boxes, *args, **kwargs)

    return place.replaced(lambda _: count), seen


@pytest.mark.parametrize("text", [YOLACT, MASK_RCNN, CASCADE, FASTER_RCNN, RETINANET])
@pytest.mark.parametrize("number", [3, 20])
def test_all_models_find_the_same_objects(text, number):
    runner = runner_of(text, number)
    while_spied, seen = spy(runner)
    with while_spied:
        batch = runner(PICTURES)
        alone = runner(PICTURES[1:2])
    assert seen == [5 * number] * 4
    for instances, (height, width) in zip(batch + alone, SIZES + SIZES[1:2]):
        assert len(instances) == number
        assert instances.image_size == (height, width)
        expected = torch.as_tensor(random_boxes(number), dtype=torch.float32)
        expected = scale_boxes(expected, (height, width))
        torch.testing.assert_close(instances.pred_boxes.tensor, expected, atol=0.01, rtol=1e-4)
        classes = num_classes(runner.cfg)
        assert instances.pred_classes.tolist() == [i % classes for i in range(number)]
        if runner.anatomy.has_masks:
            assert instances.pred_masks.shape == (number, height, width)


@pytest.mark.parametrize(
    "text, variant",
    [(YOLACT, "amp+channels-last"), (RETINANET, "amp+channels-last"), (YOLACT, "optimized")],
)
def test_variants_find_them_too(text, variant):
    runner = runner_of(text, variant=variant)
    assert [len(instances) for instances in runner(PICTURES)] == [8, 8, 8]


@pytest.mark.parametrize("text", [YOLACT, MASK_RCNN, RETINANET])
def test_about_as_many_candidates_come_as_are_used(text):
    fewest, most = runner_of(text).forcing.arrived
    # On the picture that has the fewest, 1.1 times as many and those that score the same.
    assert 44 <= fewest <= 60
    # RetinaNet passes a thousand of each level on at most; its random scores are nearly equal.
    assert fewest <= most <= (5000 if text == RETINANET else 440)


@pytest.mark.parametrize(
    "text, stages",
    [
        (YOLACT, ["preprocess", "backbone", "heads", "nms", "masks"]),
        (MASK_RCNN, ["preprocess", "backbone", "heads", "nms", "masks"]),
        (FASTER_RCNN, ["preprocess", "backbone", "heads", "nms"]),
        (RETINANET, ["preprocess", "backbone", "heads", "nms"]),
    ],
)
def test_stages_of_a_model_add_up(text, stages):
    runner = runner_of(text)
    ticks = iter(range(10**6))
    clock = lambda: float(next(ticks))  # noqa: E731  it moves whenever it is looked at
    start = clock()
    found = runner.stages(PICTURES[:1], clock)
    total = clock() - start
    assert list(found) == stages
    # Two looks are outside the stages.
    assert sum(found.values()) == total - 2
    # An R-CNN's proposals need NMS as well.
    assert found["nms"] == (2 if hasattr(runner.model, "roi_heads") else 1)
    # Mask R-CNN's masks are made in its heads, and pasted afterwards.
    assert found.get("masks", 0) == {YOLACT: 1, MASK_RCNN: 2}.get(text, 0)


def test_a_model_is_left_as_it_was():
    runner = runner_of(YOLACT)
    before = dict(vars(runner.model))
    runner(PICTURES)
    runner.stages(PICTURES, lambda: 0.0)
    assert vars(runner.model) == before


def test_with_weights_nothing_is_forced(tmp_path):
    spec = parse_models([YOLACT], device="cpu")[0]
    weights = tmp_path / "model.pth"
    torch.save({"model": Runner(spec).model.state_dict()}, weights)
    spec = parse_models([YOLACT], [str(weights)], device="cpu")[0]
    runner = Runner(spec, num_detections=3)
    runner.calibrate(PICTURES)
    assert runner.forcing is None

    predictor = DefaultPredictor(spec.load())
    for picture in PICTURES:
        got, expected = runner([picture])[0], predictor(picture)["instances"]
        assert len(got) == len(expected) > 3
        assert torch.equal(got.scores, expected.scores)
        assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(got.pred_masks, expected.pred_masks)


def test_preprocessing_is_that_of_the_predictor():
    spec = parse_models([MASK_RCNN], device="cpu")[0]
    inputs = Runner(spec).preprocess([PICTURES[0]])[0]
    predictor, seen = DefaultPredictor(spec.load()), []
    predictor.model = lambda batch: seen.extend(batch) or [None]
    predictor(PICTURES[0])
    assert inputs.keys() == seen[0].keys()
    assert torch.equal(inputs["image"], seen[0]["image"])
    assert (inputs["height"], inputs["width"]) == (60, 90)


def test_too_few_boxes_for_the_detections():
    with pytest.raises(ValueError, match=r"200 detections cannot be forced: .* but \d+ boxes"):
        runner_of(f"{MASK_RCNN},MODEL.RPN.POST_NMS_TOPK_TEST=2", number=200)


def test_features_of_random_weights_have_unit_variance():
    convolutions = [torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3)]
    backbone = torch.nn.Sequential(*convolutions)
    torch.nn.init.normal_(backbone[0].weight, std=30.0)
    image = torch.as_tensor(np.random.RandomState(0).rand(1, 3, 40, 40), dtype=torch.float32)
    for convolution in convolutions[::2]:
        torch.nn.init.zeros_(convolution.bias)
    balance_features(backbone, lambda: backbone(image))
    for depth in (1, 3):
        assert backbone[:depth](image).std().item() == pytest.approx(1, rel=1e-3)
    assert not backbone[0]._forward_hooks
