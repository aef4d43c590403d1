import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from small_models import BENCHMARK_MODELS

from tools.benchmark.models import parse_model
from tools.benchmark.training import TrainingStep, random_ground_truth, training_size


def test_training_sizes():
    def size(*words):
        return training_size(parse_model(words).load_cfg(), (427, 640))

    assert size("a", "yolact_shapes", "INPUT.IMAGE_SIZE", "96") == (96, 96)
    assert size("a", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x") == (800, 1199)


@pytest.mark.parametrize("mask_format, kind", [("bitmask", BitMasks), ("polygon", PolygonMasks)])
def test_masks_of_random_ground_truth_fill_their_boxes(mask_format, kind):
    truth = random_ground_truth((80, 120), mask_format, seed=3)
    boxes = truth.gt_boxes.tensor
    assert isinstance(truth.gt_masks, kind) and truth.image_size == (80, 120)
    assert len(truth) == 10 and boxes.min() >= 0
    assert (boxes[:, 2] <= 120).all() and (boxes[:, 3] <= 80).all()
    torch.testing.assert_close(truth.gt_masks.get_bounding_boxes().tensor, boxes, atol=1.6, rtol=0)


@pytest.mark.parametrize("name", ["yolact", "mask_rcnn", "retinanet"])
def test_training_step(name):
    step = TrainingStep(parse_model(BENCHMARK_MODELS[name], "cpu"), (64, 96), batch_size=2)
    weights = [p.clone() for p in step.model.parameters()]
    assert list(step()) == ["forward", "backward", "optimizer"]
    gradients = [p.grad for p in step.model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert max(g.abs().max() for g in gradients) > 0
    # The learning rate is 0, so all steps do the same work.
    assert all(map(torch.equal, weights, step.model.parameters()))
