"""Shared by several tests: a config, plain-loop versions of tensor operations, comparisons."""

import time
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg

from yolact_d2 import add_yolact_config
from yolact_d2.modeling.yolact.matcher import BACKGROUND, FOREGROUND, IGNORE

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def base_cfg():
    """The base config of all models, for the CPU."""
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "Base-YOLACT.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def bilinear(image, height, width):
    """Bilinear resize with half-pixel centers, repeated border, no antialiasing."""
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


def greedy_matches(iou):
    """Repeatedly match the pair with the largest IoU (the first in row-major order)."""
    iou = np.array(iou, dtype=np.float64)
    matched = np.full(len(iou), -1)
    for _ in range(min(iou.shape)):
        gt, anchor = np.unravel_index(iou.argmax(), iou.shape)
        matched[gt] = anchor
        iou[gt] = -1
        iou[:, anchor] = -1
    return matched.tolist()


def match_by_brute_force(anchors, gt_boxes, crowd_boxes):
    """:func:`match_anchors` with IoU thresholds 0.4 and 0.5 and a crowd threshold of 0.7."""
    iou = np.array([[box_iou(gt, anchor) for anchor in anchors] for gt in gt_boxes])
    matches, labels = [], []
    for a in range(len(anchors)):
        best = 0
        for g in range(len(gt_boxes)):
            if iou[g, a] > iou[best, a]:
                best = g
        best_iou = iou[best, a] if len(gt_boxes) else 0
        label = FOREGROUND if best_iou >= 0.5 else BACKGROUND if best_iou < 0.4 else IGNORE
        matches.append(best)
        labels.append(label)
    if len(gt_boxes):
        for g, a in enumerate(greedy_matches(iou)):
            if a >= 0:
                matches[a], labels[a] = g, FOREGROUND
    for a, anchor in enumerate(anchors):
        shares = [box_intersection(c, anchor) / box_area(anchor) for c in crowd_boxes]
        if max(shares, default=0) > 0.7 and labels[a] != FOREGROUND:
            labels[a] = IGNORE
    return matches, labels


def eventually(condition, seconds=5.0):
    """Wait until `condition` is true, at most some seconds; return whether it is."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def assert_equal(a, b, where=""):
    """Assert that nested dicts and lists of tensors and values are equal bit by bit."""
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
