"""Matching against the authors' greedy loop and brute force over all pairs."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from hypothesis import given, settings
from plain import greedy_matches, match_by_brute_force
from strategies import integer_boxes

from yolact_d2.modeling.yolact import matcher
from yolact_d2.modeling.yolact.matcher import (
    BACKGROUND,
    FOREGROUND,
    IGNORE,
    ignore_crowds,
    match_anchors,
    match_one_to_one,
)


def _random_iou(kind, num_gt, num_anchors, seed):
    rng = np.random.default_rng(seed)
    iou = rng.random((num_gt, num_anchors))
    if kind == "many ties":
        iou = np.round(iou * 3) / 3
    elif kind == "mostly zero":
        iou[rng.random(iou.shape) < 0.7] = 0
        iou[rng.random(num_gt) < 0.4] = 0
    elif kind == "all equal":
        iou[:] = 0.5
    elif kind == "same rows":
        iou[:] = np.round(iou[:1], 1)
    return torch.tensor(iou, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["random", "many ties", "mostly zero", "all equal", "same rows"])
def test_one_to_one_matches_equal_the_greedy_loop(kind):
    """With fewer anchors than objects too, and without any."""
    more_anchors = [(0, 0), (0, 5), (1, 1), (1, 7), (4, 4), (5, 40), (12, 200)]
    fewer_anchors = [(3, 0), (2, 1), (5, 4), (9, 3), (20, 6)]
    for num_gt, num_anchors in more_anchors + fewer_anchors:
        for seed in range(4):
            iou = _random_iou(kind, num_gt, num_anchors, seed)
            matched = match_one_to_one(iou.clone())
            assert matched.dtype == torch.int64
            assert matched.tolist() == greedy_matches(iou.numpy())


def _random_boxes(rng, num, integer):
    if integer:  # many ties
        start = rng.integers(0, 8, (num, 2))
        size = rng.integers(1, 4, (num, 2))
    else:
        start = rng.random((num, 2)).astype(np.float32)
        size = 0.1 + 0.4 * rng.random((num, 2)).astype(np.float32)
    return np.concatenate([start, start + size], axis=1).astype(np.float32)


def _match(anchors, gt_boxes, crowd_boxes):
    boxes = [
        Boxes(torch.as_tensor(b, dtype=torch.float32).reshape(-1, 4))
        for b in (anchors, gt_boxes, crowd_boxes)
    ]
    matches, labels = _match_boxes(*boxes)
    return matches.tolist(), labels.tolist()


def _match_boxes(anchors, gt_boxes, crowd_boxes):
    matches, labels = match_anchors(anchors, gt_boxes, (0.4, 0.5))
    ignore_crowds(labels, anchors, crowd_boxes, 0.7)
    return matches, labels


@pytest.mark.parametrize("integer", [False, True], ids=["float", "integer"])
@pytest.mark.parametrize("max_pairs", [2**22, 130], ids=["at once", "in chunks"])
def test_equals_brute_force(integer, max_pairs, monkeypatch):
    monkeypatch.setattr(matcher, "_MAX_PAIRS", max_pairs)
    for numbers in [(60, 4, 0), (60, 4, 2), (200, 15, 3), (50, 0, 3), (50, 0, 0), (3, 8, 1)]:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            boxes = [_random_boxes(rng, num, integer) for num in numbers]
            assert _match(*boxes) == match_by_brute_force(*(b.tolist() for b in boxes))


@settings(max_examples=100)
@given(integer_boxes(12, 5), integer_boxes(8, 5), integer_boxes(3, 5))
def test_every_object_has_an_anchor_of_its_own_if_there_are_enough(anchors, objects, crowds):
    """For equal boxes, boxes without area, crowds that cover everything."""
    matches, labels = _match_boxes(Boxes(anchors), Boxes(objects), Boxes(crowds))
    matched = set(matches[labels == FOREGROUND].tolist())
    if len(anchors) >= len(objects):
        assert matched == set(range(len(objects)))
    else:
        assert len(matched) == len(anchors) == int((labels == FOREGROUND).sum())


def test_the_own_anchor_of_an_object_is_foreground_with_any_iou():
    """IoUs of 0.01 and 0."""
    anchors = [[0, 0, 1, 1], [5, 5, 6, 6], [8, 8, 9, 9]]
    gt_boxes = [[0, 0, 10, 1], [20, 20, 30, 30]]
    assert _match(anchors, gt_boxes, []) == ([0, 1, 0], [FOREGROUND, FOREGROUND, BACKGROUND])


def test_thresholds_are_inclusive():
    anchors = [
        [0, 0, 4, 1],
        [0, 0, 2, 1],  # IoU 1 / 2
        [0, 0, 1.99, 1],
        [2, 0, 5, 1],  # IoU 2 / 5
        [2.01, 0, 5, 1],
    ]
    labels = _match(anchors, [[0, 0, 4, 1]], [])[1]
    assert labels == [FOREGROUND, FOREGROUND, IGNORE, IGNORE, BACKGROUND]


def test_anchors_are_ignored_if_more_than_the_threshold_of_them_is_in_a_crowd():
    crowd_boxes = [[0, 0, 7, 1], [100, 0, 101, 1]]
    anchors = [
        [0, 0, 10, 1],  # 7 / 10 of the anchor
        [0, 0, 9.99, 1],
        [1, 0, 2, 1],  # 1 / 7 of the crowd, all of the anchor
        [100, 0, 101, 1],
    ]
    assert _match(anchors, [], crowd_boxes)[1] == [BACKGROUND, IGNORE, IGNORE, IGNORE]


def test_foreground_anchors_in_a_crowd_stay_foreground():
    box = [[0, 0, 4, 4]]
    assert _match(box, box, [[0, 0, 9, 9]]) == ([0], [FOREGROUND])
