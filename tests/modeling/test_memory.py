"""Peak memory of the losses of many objects, and of many masks of a large image."""

import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

PEAK = """
import torch
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
"""

LOSSES = """
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import BitMasks, Boxes, Instances
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

MASKS = """
from yolact_d2.modeling.masks import paste_masks

def paste(num, box, size):
    return paste_masks(torch.rand(num, 138, 138), torch.tensor([box] * num), size)

paste(2, [0.0, 0.0, 138.0, 138.0], (200, 200))
before = peak()
small = paste(100, [20.0, 20.0, 24.0, 24.0], (2160, 3840))
print(peak() - before)
large = paste(20, [0.0, 0.0, 138.0, 138.0], (2160, 3840))
print(peak() - before)
"""


def _run(script):
    done = subprocess.run([sys.executable, "-c", PEAK + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_peak_memory_of_the_losses_of_500_objects():
    """Without the masks themselves, and what 5 objects need."""
    # 115 MB are IoUs. As float, the masks would be 605 MB; the IoUs at once need 693 MB more.
    assert _run(LOSSES)[0] < 450e6


def test_peak_memory_of_masks_in_a_large_image():
    small, large = _run(MASKS)
    # 100 bool masks are 829 MB, 20 are 166 MB; in float four times as much.
    assert small < 100e6
    assert large - small < 166e6 + 100e6
