"""The bounds of docs/memory.md."""

import subprocess
import sys

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from small_models import tiny_yolact
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from yolact_d2.modeling import losses, masks, yolact
from yolact_d2.modeling.criterion import split_crowds
from yolact_d2.modeling.losses import downsample_masks

CRITERION = """
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import BitMasks, Boxes, Instances
from yolact_d2.benchmark.memory import high_water as peak
from yolact_d2.modeling import DensePredictions
from yolact_d2.modeling.criterion import YOLACTCriterion

SIZE, ANCHORS, CLASSES = 550, 57744, 8
NAMES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "loss_mask_iou")
criterion = YOLACTCriterion(
    box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
    num_classes=CLASSES,
    loss_weights=dict.fromkeys(NAMES, 1.0),
)

def boxes(num):
    center, half = torch.rand(num, 2), 0.02 + 0.1 * torch.rand(num, 2)
    return torch.cat([center - half, center + half], dim=1)

def ground_truth(num):
    gt = Instances((SIZE, SIZE))
    gt.gt_boxes = Boxes(boxes(num) * SIZE)
    gt.gt_classes = torch.randint(CLASSES, (num,))
    gt.gt_masks = BitMasks(torch.ones(num, SIZE, SIZE, dtype=torch.bool))
    gt.gt_iscrowd = torch.zeros(num, dtype=torch.bool)
    return gt

def step(gt):
    logits, deltas, coefficients, prototypes, sem_seg_logits = (
        torch.randn(1, *shape, requires_grad=True)
        for shape in (
            (ANCHORS, CLASSES + 1), (ANCHORS, 4), (ANCHORS, 32), (32, 138, 138), (CLASSES, 69, 69)
        )
    )
    predictions = DensePredictions(logits, deltas, coefficients.tanh())
    losses = criterion(anchors, predictions, prototypes.relu(), sem_seg_logits, [gt])
    sum(losses.values()).backward()

torch.manual_seed(0)
anchors = Boxes(boxes(ANCHORS))
step(ground_truth(5))
gt = ground_truth(500)
before = peak()
step(gt)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts with a high mark")
def test_peak_memory_of_the_losses_of_500_objects():
    """Beyond what 5 objects need, and the masks themselves (151 MB)."""
    done = subprocess.run([sys.executable, "-c", CRITERION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 115 MB are the IoUs with 57744 anchors, 100 MB what is there while they are made in parts. In
    # float the masks would be 605 MB, and all IoUs made at once need 693 MB besides themselves.
    assert int(done.stdout) < 450e6


def test_masks_are_float_in_parts_only(monkeypatch):
    gt_masks = torch.rand(23, 40, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = downsample_masks(gt_masks, (11, 9))
    assert expected.any() and not expected.all()
    for limit, largest in ((1, 1), (5 * 40 * 50 + 3, 5), (10**6, 23)):
        monkeypatch.setattr(losses, "_MAX_FLOAT_PIXELS", limit)
        with Allocations() as found:
            assert torch.equal(downsample_masks(gt_masks, (11, 9)), expected)
        assert found.largest_float == largest * 40 * 50


def test_without_crowds_the_masks_are_not_copied():
    gt = Instances((8, 8))
    gt.gt_boxes = Boxes(torch.zeros(3, 4))
    gt.gt_masks = BitMasks(torch.zeros(3, 8, 8, dtype=torch.bool))
    gt.gt_iscrowd = torch.zeros(3, dtype=torch.bool)
    objects, crowds = split_crowds(gt)
    assert objects.gt_masks.tensor.data_ptr() == gt.gt_masks.tensor.data_ptr()
    assert len(objects) == 3 and len(crowds) == 0 and crowds.has("gt_masks")


class Allocations(TorchDispatchMode):
    """Sizes, in elements, of the largest tensors that operations give."""

    def __init__(self):
        super().__init__()
        self.largest_float = self.largest_other = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_flatten(result)[0]:
            if isinstance(x, torch.Tensor):
                # What an expanded tensor really is.
                size = x.untyped_storage().nbytes() // x.element_size()
                if x.is_floating_point():
                    self.largest_float = max(self.largest_float, size)
                else:
                    self.largest_other = max(self.largest_other, size)
        return result


@pytest.fixture(scope="module")
def model():
    return tiny_yolact(TEST__DETECTIONS_PER_IMAGE=30).eval()


@pytest.mark.parametrize("device", ["CPU", "GPU"])
@pytest.mark.parametrize("height, width", [(300, 400), (900, 1200)])
def test_in_inference_no_float_is_larger_than_the_picture(
    model, monkeypatch, device, height, width
):
    """Nor than a part of the masks, of stated size: 30 masks would be ten times as large."""
    monkeypatch.setattr(masks, "_MAX_RESIZED_ELEMENTS", 4 * 300 * 400)
    if device == "GPU":
        monkeypatch.setattr(yolact, "paste_masks", lambda m, _, size: masks.resize_masks(m, size))
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad(), Allocations() as found:
        instances = model([{"image": image.byte()}])[0]["instances"]
    assert len(instances) == 30 and instances.pred_masks.any()
    assert found.largest_float <= max(3 * height * width, 4 * 300 * 400)
    assert found.largest_other <= 30 * height * width


def test_on_a_cpu_a_mask_is_made_in_parts(monkeypatch):
    """Of the rows of the picture, so that no float is as large as one mask."""
    monkeypatch.setattr(masks, "_MAX_CPU_ELEMENTS", 20 * 1000)
    soft = torch.full((2, 16, 16), 0.9)
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0]] * 2)
    with Allocations() as found:
        assert masks.paste_masks(soft, boxes, (1000, 1000)).all()
    assert found.largest_float == 20 * 1000
