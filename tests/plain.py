"""What several tests need: a config, and plain versions of what tensors do at once."""

import time
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg

from yolact_d2 import add_yolact_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def base_cfg():
    """The config of all models, for the CPU."""
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "Base-YOLACT.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def bilinear(image, height, width):
    """Half-pixel centres, border repeated, no antialiasing."""
    rows, columns = image.shape
    out = np.zeros((height, width))
    for i in range(height):
        y = max((i + 0.5) * rows / height - 0.5, 0)
        top, bottom = int(y), min(int(y) + 1, rows - 1)
        for j in range(width):
            x = max((j + 0.5) * columns / width - 0.5, 0)
            left, right = int(x), min(int(x) + 1, columns - 1)
            upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
            lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
            out[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return out


def box_area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def box_intersection(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def box_iou(a, b):
    both = box_intersection(a, b)
    return both / (box_area(a) + box_area(b) - both)


def greedy_claims(iou):
    """Claim the largest IoU, the first in row-major order, strike its row and column, repeat."""
    iou = np.array(iou, dtype=np.float64)
    claimed = np.full(len(iou), -1)
    for _ in range(min(iou.shape)):
        gt, anchor = np.unravel_index(iou.argmax(), iou.shape)
        claimed[gt] = anchor
        iou[gt] = -1
        iou[:, anchor] = -1
    return claimed.tolist()


def eventually(condition, seconds=5.0):
    """Whether something that other threads work on becomes true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def assert_equal(a, b, where=""):
    """That dicts and lists of tensors and values, in each other, are the same to the bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where
