import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from small_models import MASK_RCNN, RETINANET, YOLACT

from yolact_d2.benchmark.specs import parse_models
from yolact_d2.benchmark.training import (
    TrainingSettings,
    TrainingStep,
    ellipses,
    random_ground_truth,
    training_size,
)


def spec_of(text):
    return parse_models([text], device="cpu")[0]


def test_sizes():
    assert training_size(spec_of(YOLACT).load(), (427, 640)) == (96, 96)
    assert training_size(spec_of(MASK_RCNN).load(), (427, 640)) == (96, 144)
    zoo = spec_of("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml").load()
    assert training_size(zoo, (427, 640)) == (800, 1199)


def test_ellipses_fill_their_boxes():
    box = np.array([10.0, 20, 50, 30])
    (polygon,) = ellipses(box[None])
    assert polygon.min(axis=0).tolist() == pytest.approx([10, 20])
    assert polygon.max(axis=0).tolist() == pytest.approx([50, 30])


@pytest.mark.parametrize("mask_format, kind", [("bitmask", BitMasks), ("polygon", PolygonMasks)])
def test_ground_truth(mask_format, kind):
    truth = random_ground_truth((80, 120), 9, 4, mask_format, seed=3)
    assert truth.image_size == (80, 120) and len(truth) == 9
    assert truth.gt_classes.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert isinstance(truth.gt_masks, kind)
    # What is drawn is as large as its box, to a pixel or so.
    boxes = truth.gt_boxes.tensor
    assert (boxes[:, 2] <= 120).all() and (boxes[:, 3] <= 80).all()
    torch.testing.assert_close(truth.gt_masks.get_bounding_boxes().tensor, boxes, atol=1.6, rtol=0)


@pytest.mark.parametrize("text", [YOLACT, MASK_RCNN, RETINANET])
def test_an_iteration(text):
    step = TrainingStep(spec_of(text), (64, 96), TrainingSettings(batch_size=2, num_objects=4))
    assert len(step.batch) == 2 and len(step.batch[0]["instances"]) == 4
    weights = [p.clone() for p in step.model.parameters()]
    ticks = iter(range(100))
    assert step(lambda: float(next(ticks))) == {"forward": 1, "backward": 1, "step": 1}
    gradients = [p.grad for p in step.model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert max(g.abs().max() for g in gradients) > 0
    # Nothing is learnt: each iteration does the same work.
    assert all(map(torch.equal, weights, step.model.parameters()))
