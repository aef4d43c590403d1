"""Matching against the authors' greedy loop and a brute force over all pairs."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from plain import box_area, box_intersection, box_iou, greedy_claims

from yolact_d2.modeling.matcher import (
    BACKGROUND,
    FOREGROUND,
    IGNORE,
    claim_best_anchors,
    match_anchors,
)

THRESHOLDS = (0.4, 0.5)
CROWD_THRESH = 0.7


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


KINDS = ["random", "many ties", "mostly zero", "all equal", "same rows"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_gt, num_anchors", [(1, 1), (1, 7), (4, 4), (5, 40), (12, 200)])
@pytest.mark.parametrize("seed", range(4))
def test_claims_equal_the_greedy_loop(kind, num_gt, num_anchors, seed):
    iou = _random_iou(kind, num_gt, num_anchors, seed)
    claimed = claim_best_anchors(iou.clone())
    assert claimed.dtype == torch.int64
    assert claimed.tolist() == greedy_claims(iou.numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_gt, num_anchors", [(2, 1), (5, 4), (9, 3), (20, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_with_too_few_anchors_the_worst_ground_truths_get_none(kind, num_gt, num_anchors, seed):
    iou = _random_iou(kind, num_gt, num_anchors, seed)
    assert claim_best_anchors(iou.clone()).tolist() == greedy_claims(iou.numpy())


def test_anchors_that_run_out_at_once_are_not_claimed_twice():
    iou = torch.tensor([[0.1, 0.1], [0.9, 0.0], [0.0, 0.9]])
    assert claim_best_anchors(iou).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("size", [2, 5, 9])
def test_a_chain_in_which_each_claim_frees_the_next(size):
    """Each row prefers the anchor that the row before it takes."""
    iou = torch.zeros(size, size)
    values = torch.linspace(0.9, 0.1, 2 * size)
    for row in range(size):
        iou[row, row] = values[2 * row]
        if row > 0:
            iou[row, row - 1] = values[2 * row - 1]
    claimed = claim_best_anchors(iou.clone())
    assert claimed.tolist() == list(range(size)) == greedy_claims(iou.numpy())


@pytest.mark.parametrize("num_gt, num_anchors", [(0, 5), (3, 0), (0, 0)])
def test_claims_without_ground_truth_or_anchors(num_gt, num_anchors):
    assert claim_best_anchors(torch.zeros(num_gt, num_anchors)).tolist() == [-1] * num_gt


def _match_by_brute_force(anchors, gt_boxes, crowd_boxes):
    iou = np.array([[box_iou(gt, anchor) for anchor in anchors] for gt in gt_boxes])
    matches, labels = [], []
    for a, anchor in enumerate(anchors):
        best = 0
        for g in range(len(gt_boxes)):
            if iou[g, a] > iou[best, a]:
                best = g
        best_iou = iou[best, a] if len(gt_boxes) else 0
        label = FOREGROUND if best_iou >= 0.5 else BACKGROUND if best_iou < 0.4 else IGNORE
        matches.append(best)
        labels.append(label)
    if len(gt_boxes):
        for g, a in enumerate(greedy_claims(iou)):
            if a >= 0:
                matches[a], labels[a] = g, FOREGROUND
    for a, anchor in enumerate(anchors):
        shares = [box_intersection(c, anchor) / box_area(anchor) for c in crowd_boxes]
        in_crowd = max(shares, default=0)
        if in_crowd > 0.7 and labels[a] != FOREGROUND:
            labels[a] = IGNORE
    return matches, labels


def _random_boxes(rng, num, side, integer):
    if integer:
        start = rng.integers(0, side, (num, 2))
        size = rng.integers(1, side // 2, (num, 2))
    else:
        start = rng.random((num, 2)).astype(np.float32) * side
        size = (0.1 + 0.4 * rng.random((num, 2)).astype(np.float32)) * side
    return np.concatenate([start, start + size], axis=1).astype(np.float32)


def _match(anchors, gt_boxes, crowd_boxes):
    boxes = [
        Boxes(torch.as_tensor(b, dtype=torch.float32).reshape(-1, 4))
        for b in (anchors, gt_boxes, crowd_boxes)
    ]
    matches, labels = match_anchors(*boxes, THRESHOLDS, CROWD_THRESH)
    return matches.tolist(), labels.tolist()


@pytest.mark.parametrize("integer", [False, True], ids=["float", "ties"])
@pytest.mark.parametrize(
    "num_anchors, num_gt, num_crowds",
    [(60, 4, 0), (60, 4, 2), (200, 15, 3), (50, 0, 3), (50, 0, 0), (3, 8, 1), (1, 1, 1)],
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force(num_anchors, num_gt, num_crowds, integer, seed):
    rng = np.random.default_rng(seed)
    side = 8 if integer else 1
    anchors, gt_boxes, crowd_boxes = (
        _random_boxes(rng, num, side, integer) for num in (num_anchors, num_gt, num_crowds)
    )
    expected = _match_by_brute_force(*(b.tolist() for b in (anchors, gt_boxes, crowd_boxes)))
    assert _match(anchors, gt_boxes, crowd_boxes) == expected


def test_a_claimed_anchor_is_foreground_whatever_its_iou():
    """Each object gets an anchor: an IoU of 0.01, and none at all, are enough."""
    anchors = [[0, 0, 1, 1], [5, 5, 6, 6], [8, 8, 9, 9]]
    gt_boxes = [[0, 0, 10, 1], [20, 20, 30, 30]]
    assert _match(anchors, gt_boxes, []) == ([0, 1, 0], [FOREGROUND, FOREGROUND, BACKGROUND])


def test_a_claim_outranks_a_better_object():
    """The second object overlaps the first anchor less, but has nothing else."""
    anchors = [[0, 0, 4, 4], [0, 0, 4, 3]]
    gt_boxes = [[0, 0, 4, 4], [0, 0, 4, 3.6]]
    assert _match(anchors, gt_boxes, []) == ([0, 1], [FOREGROUND, FOREGROUND])
    assert _match(anchors[:1] * 2, gt_boxes, []) == ([0, 1], [FOREGROUND, FOREGROUND])


def test_thresholds_belong_to_the_better_side():
    gt_boxes = [[0, 0, 4, 1]]
    anchors = [
        [0, 0, 4, 1],
        [0, 0, 2, 1],  # IoU 1 / 2
        [0, 0, 1.99, 1],
        [2, 0, 5, 1],  # IoU 2 / 5
        [2.01, 0, 5, 1],
    ]
    labels = _match(anchors, gt_boxes, [])[1]
    assert labels == [FOREGROUND, FOREGROUND, IGNORE, IGNORE, BACKGROUND]


def test_crowd_ignores_what_lies_in_it_by_more_than_the_threshold():
    crowd_boxes = [[0, 0, 7, 1], [100, 0, 101, 1]]
    anchors = [
        [0, 0, 10, 1],  # 7 / 10 of the anchor
        [0, 0, 9.99, 1],
        [1, 0, 2, 1],  # 1 / 7 of the crowd, all of the anchor
        [100, 0, 101, 1],
    ]
    assert _match(anchors, [], crowd_boxes)[1] == [BACKGROUND, IGNORE, IGNORE, IGNORE]


def test_crowd_does_not_take_foreground():
    box = [[0, 0, 4, 4]]
    assert _match(box, box, [[0, 0, 9, 9]]) == ([0], [FOREGROUND])
