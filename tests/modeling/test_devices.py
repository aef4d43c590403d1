"""Models on a device other than the CPU, which needs none: see fake_gpu.py.

A tensor on the wrong device is an error, wherever it is made. What is not seen: operations and
dtypes that a GPU lacks, the results of its kernels, autocast, more than one device, and indices on
the CPU, which a GPU takes.
"""

from functools import partial

import pytest
import torch
from detectron2.utils.events import EventStorage
from fake_gpu import DEVICE, fake_gpu
from small_models import tiny_embedmask, tiny_yolact, training_input
from torch.optim.swa_utils import AveragedModel

from yolact_d2.engine import SkipNonFiniteTrainer
from yolact_d2.modeling import NMS_REGISTRY

MODELS = {
    "yolact": tiny_yolact,
    "yolact++": partial(
        tiny_yolact,
        "yolact_plus_shapes",
        MODEL__YOLACT__MASK_IOU__MIN_AREA=0,
        MODEL__YOLACT__MAX_MASK_POSITIVES=3,  # a random subset
        MODEL__YOLACT__MIN_NEGATIVES_PER_IMAGE=9,
    ),
    "embedmask": partial(tiny_embedmask, MODEL__EMBEDMASK__LOSS_SMOOTH_WEIGHT=0.1),
}
INPUTS = [
    training_input([[4, 4, 40, 50], [30, 10, 60, 60], [60, 2, 70, 9]], crowd=[False, True, False]),
    training_input([], 40, 30),
]
INPUTS[1]["instances"].remove("gt_masks")  # as of Detectron2's DatasetMapper


@pytest.fixture(params=MODELS)
def build(request):
    return MODELS[request.param]


def assert_near(got, expected, name, atol=1e-5):
    assert got.device.type == DEVICE, name
    torch.testing.assert_close(got.values, expected, rtol=1e-4, atol=atol)


def train_step(model):
    """Train on one batch: returns the losses, the new weights and their average."""
    losses, average = [], AveragedModel(model)
    trainer = SkipNonFiniteTrainer(
        model.train(),
        [INPUTS],
        torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-3),
        averaged_model=average,
        seed=0,
    )
    model.register_forward_hook(lambda *x: losses.append(x[-1]))
    with EventStorage():
        trainer.run_step()
    assert trainer.num_skipped == 0
    return losses[0], model.state_dict(), average.module.state_dict()


def test_a_training_step_on_a_device_is_that_on_the_cpu(build):
    expected = train_step(build())
    with fake_gpu():
        results = train_step(build().to(DEVICE))
    for result, other in zip(results, expected):
        for name, tensor in other.items():
            assert_near(result[name].detach(), tensor.detach(), name)


@torch.no_grad()
def test_detections_on_a_device_are_those_on_the_cpu(build):
    expected = build().eval()(INPUTS)
    with fake_gpu():
        results = build().to(DEVICE).eval()(INPUTS)
    for result, other in zip(results, expected):
        found, other = (x["instances"].get_fields() for x in (result, other))
        assert set(found) == set(other) and len(other["scores"]) > 5
        for name, values in other.items():
            got = found[name]
            if name == "pred_masks":
                assert got.device.type == DEVICE
                assert (got.values != values).float().mean() < 1e-3
            elif name == "pred_boxes":
                assert_near(got.tensor, values.tensor, name, atol=1e-3)
            else:
                assert_near(got, values, name)


@pytest.mark.parametrize("name", ["fast_nms", "cross_class_fast_nms", "batched_nms"])
def test_nms_on_a_device_is_that_on_the_cpu(name):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, 2, generator=generator)
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    scores = torch.rand(200, 6, generator=generator)
    limits = dict(score_thresh=0.1, iou_thresh=0.5, topk=50, max_detections=20)
    nms = NMS_REGISTRY.get(name)
    with fake_gpu():
        found = nms(boxes.to(DEVICE), scores.to(DEVICE), **limits)
    for got, expected in zip(found, nms(boxes, scores, **limits)):
        assert got.device.type == DEVICE and torch.equal(got.values, expected)


def test_the_fake_refuses_what_a_gpu_refuses():
    with fake_gpu():
        x, i = torch.ones(3, device=DEVICE), torch.arange(3)
        for wrong in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(1)]),
            lambda: torch.ones(3)[i.to(DEVICE)],
            lambda: x.gather(0, i),
            lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
            lambda: x.masked_fill_(i > 0, 0),
        ):
            with pytest.raises(RuntimeError, match="on the CPU and on the device"):
                wrong()
        x[i] = 2 * x[i] + torch.tensor(1.0)
        assert x.tolist() == x.cpu().tolist() == [3, 3, 3] and x.sum() == 9
