"""Peak memory of the losses of many objects, and of many masks of a large image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from plain import base_cfg

from yolact_d2.modeling import DensePredictions
from yolact_d2.modeling.yolact.criterion import YOLACTCriterion
from yolact_d2.modeling.yolact.masks import paste_masks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

SIZE, ANCHORS = 550, 57744


def peak():
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def boxes(num):
    center, half = torch.rand(num, 2), 0.02 + 0.1 * torch.rand(num, 2)
    return torch.cat([center - half, center + half], dim=1)


def ground_truth(num):
    gt = Instances((SIZE, SIZE))
    gt.gt_boxes = Boxes(boxes(num) * SIZE)
    gt.gt_classes = torch.randint(80, (num,))
    gt.gt_masks = BitMasks(torch.ones(num, SIZE, SIZE, dtype=torch.bool))
    return gt


def train(gt):
    shapes = (ANCHORS, 81), (ANCHORS, 4), (ANCHORS, 32), (32, 138, 138), (80, 69, 69)
    outputs = [torch.randn(1, *shape, requires_grad=True) for shape in shapes]
    logits, deltas, coefficients, prototypes, sem_seg_logits = outputs
    predictions = DensePredictions(logits, deltas, coefficients.tanh())
    losses = YOLACTCriterion(base_cfg())(
        [Boxes(boxes(ANCHORS))], predictions, prototypes.relu(), sem_seg_logits, [gt]
    )
    sum(losses.values()).backward()


def paste(num, box):
    return paste_masks(torch.rand(num, 138, 138), torch.tensor([box] * num), (1080, 1920))


def run(script):
    """Run lines of Python in a new process. Return the numbers that they print."""
    done = subprocess.run(
        [sys.executable, "-c", f"from test_memory import *\n{script}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_peak_memory_of_the_losses_of_500_objects():
    """Without the masks themselves, and what 5 objects need."""
    added = run("""
train(ground_truth(5))
gt, before = ground_truth(500), peak()
train(gt)
print(peak() - before)
""")
    # 115 MB are IoUs. As float, the masks would be 605 MB; the IoUs at once need 693 MB more.
    assert added[0] < 450e6


def test_peak_memory_of_masks_in_a_large_image():
    small, large = run("""
paste(2, [0.0, 0.0, 138.0, 138.0])
before = peak()
small = paste(100, [20.0, 20.0, 24.0, 24.0])
print(peak() - before)
large = paste(50, [0.0, 0.0, 138.0, 138.0])
print(peak() - before)
""")
    # 100 bool masks are 207 MB, 50 are 104 MB; in float four times as much.
    assert small < 100e6
    assert large - small < 104e6 + 100e6
