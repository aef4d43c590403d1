"""Fast NMS and its variants against loops and torchvision's NMS."""

import pytest
import torch
from torchvision.ops import nms

from yolact_d2.modeling.nms import (
    NMS_REGISTRY,
    batched_nms,
    cross_class_fast_nms,
    fast_nms,
    get_nms,
    pairwise_iou,
)

ALL = [fast_nms, cross_class_fast_nms, batched_nms]
DEFAULTS = dict(score_thresh=0.05, iou_thresh=0.5, topk=200, max_detections=100)


def _call(function, boxes, scores, **changes):
    boxes, scores = torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores)
    return function(boxes, scores, **{**DEFAULTS, **changes})


def _lists(detections):
    """(index, class, score) of each."""
    return list(zip(*(x.tolist() for x in detections)))


def _random(num, num_classes, seed):
    """Overlapping boxes, some beyond the image, with distinct scores."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(num, 2, generator=generator) * 0.6 - 0.1
    boxes = torch.cat([start, start + 0.1 + torch.rand(num, 2, generator=generator) * 0.5], dim=1)
    total = num * num_classes
    scores = (torch.randperm(total, generator=generator) + 0.5) / total
    return boxes, scores.reshape(num, num_classes)


def _iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)


def _survivors(boxes, ranked, iou_thresh):
    """Those that overlap no better one too much, whether or not that one survives."""
    return [
        box
        for i, box in enumerate(ranked)
        if all(_iou(boxes[better], boxes[box]) <= iou_thresh for better in ranked[:i])
    ]


def _fast_nms_loop(boxes, scores, iou_thresh, topk, max_detections):
    found = []
    for c in range(len(scores[0])):
        ranked = sorted(range(len(boxes)), key=lambda b: -scores[b][c])[:topk]
        found += [(b, c, scores[b][c]) for b in _survivors(boxes, ranked, iou_thresh)]
    return sorted(found, key=lambda detection: -detection[2])[:max_detections]


def _cross_class_loop(boxes, scores, iou_thresh, topk, max_detections):
    ranked = sorted(range(len(boxes)), key=lambda b: -max(scores[b]))[:topk]
    kept = _survivors(boxes, ranked, iou_thresh)[:max_detections]
    return [(b, scores[b].index(max(scores[b])), max(scores[b])) for b in kept]


@pytest.mark.parametrize(
    "function, loop", [(fast_nms, _fast_nms_loop), (cross_class_fast_nms, _cross_class_loop)]
)
@pytest.mark.parametrize("num, num_classes", [(1, 1), (1, 5), (40, 1), (60, 4), (20, 17)])
@pytest.mark.parametrize(
    "iou_thresh, topk, max_detections",
    [(0.5, 200, 100), (0.3, 200, 10**6), (0.7, 15, 1000), (0.5, 200, 7), (1.0, 9, 20)],
)
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_loop(function, loop, num, num_classes, iou_thresh, topk, max_detections, seed):
    boxes, scores = _random(num, num_classes, seed)
    limits = dict(iou_thresh=iou_thresh, topk=topk, max_detections=max_detections)
    expected = loop(boxes.tolist(), scores.tolist(), **limits)
    assert _lists(_call(function, boxes, scores, **limits)) == expected


# Neighbours have an IoU of 0.6, the ends one of 1 / 3.
CHAIN = [[0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1]]
CHAIN_SCORES = [[0.9], [0.8], [0.7]]


@pytest.mark.parametrize("function", [fast_nms, cross_class_fast_nms])
def test_suppressed_boxes_still_suppress(function):
    assert _call(function, CHAIN, CHAIN_SCORES).indices.tolist() == [0]


def test_ordinary_nms_keeps_what_a_suppressed_box_overlaps():
    assert _call(batched_nms, CHAIN, CHAIN_SCORES).indices.tolist() == [0, 2]


@pytest.mark.parametrize("seed", range(3))
def test_fast_nms_keeps_a_part_of_what_ordinary_nms_keeps(seed):
    boxes, scores = _random(80, 3, seed)
    kept = _lists(_call(fast_nms, boxes, scores, max_detections=10**6))
    for c in range(3):
        fast = {box for box, label, _ in kept if label == c}
        ordinary = set(nms(boxes, scores[:, c], 0.5).tolist())
        assert fast < ordinary


def test_fast_nms_has_no_second_score_threshold():
    detections = _call(fast_nms, [[0, 0, 1, 1]], [[0.0, 0.9, 0.04]])
    assert detections.classes.tolist() == [1, 2, 0]
    assert detections.indices.tolist() == [0, 0, 0]
    assert torch.equal(detections.scores, torch.tensor([0.9, 0.04, 0.0]))


def test_cross_class_fast_nms_gives_a_box_its_best_class_only():
    boxes = [[0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 6, 6]]
    scores = [[0.6, 0.5], [0.1, 0.7], [0.2, 0.3]]
    detections = _call(cross_class_fast_nms, boxes, scores)
    assert detections.indices.tolist() == [1, 2] and detections.classes.tolist() == [1, 1]


def test_classes_do_not_suppress_each_other():
    boxes, scores = [[0, 0, 1, 1], [0, 0, 1, 1]], [[0.9, 0.1], [0.2, 0.8]]
    for function in (fast_nms, batched_nms):
        detections = _call(function, boxes, scores)
        assert detections.indices.tolist() == [0, 1] and detections.classes.tolist() == [0, 1]


@pytest.mark.parametrize("function", ALL)
def test_an_iou_of_exactly_the_threshold_survives(function):
    boxes = [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 2.01]]
    detections = _call(function, boxes, [[0.9], [0.8], [0.7]])
    assert detections.indices.tolist() == [0, 1]


@pytest.mark.parametrize("function", ALL)
def test_of_identical_boxes_with_equal_scores_one_survives(function):
    assert len(_call(function, [[1, 2, 3, 5]] * 6, [[0.7]] * 6).indices) == 1


def test_pairwise_iou_of_independent_lists():
    boxes = _random(24, 1, 0)[0].reshape(2, 3, 4, 4)
    iou = pairwise_iou(boxes)
    assert iou.shape == (2, 3, 4, 4)
    expected = [
        [[[_iou(a, b) for b in boxes] for a in boxes] for boxes in lists]
        for lists in boxes.tolist()
    ]
    torch.testing.assert_close(iou, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_pairwise_iou_of_tiny_boxes_leaves_them_as_they_are():
    """Boxes are relative to the image."""
    boxes = 1e-5 * torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    before = boxes.clone()
    expected = torch.tensor([[1, 1 / 3], [1 / 3, 1]])
    torch.testing.assert_close(pairwise_iou(boxes), expected)
    assert torch.equal(boxes, before)


def test_pairwise_iou_of_boxes_without_area_is_zero():
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4]])
    assert pairwise_iou(boxes).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("function", [fast_nms, cross_class_fast_nms])
def test_boxes_without_area_overlap_nothing(function):
    boxes = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4]]
    detections = _call(function, boxes, [[0.9], [0.8], [0.7]])
    assert detections.indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("num, num_classes", [(1, 1), (50, 1), (70, 5)])
@pytest.mark.parametrize("score_thresh, max_detections", [(0.05, 10**6), (0.6, 10**6), (0.05, 9)])
@pytest.mark.parametrize("seed", range(2))
def test_batched_nms_is_ordinary_nms_of_each_class(
    num, num_classes, score_thresh, max_detections, seed
):
    boxes, scores = _random(num, num_classes, seed)
    expected = []
    for c in range(num_classes):
        candidates = [b for b in range(num) if scores[b, c] > score_thresh]
        for i in nms(boxes[candidates], scores[candidates, c], 0.5).tolist():
            expected.append((candidates[i], c, scores[candidates[i], c].item()))
    expected = sorted(expected, key=lambda detection: -detection[2])[:max_detections]
    detections = _call(
        batched_nms, boxes, scores, score_thresh=score_thresh, max_detections=max_detections
    )
    assert _lists(detections) == expected


def test_batched_nms_drops_scores_up_to_the_threshold():
    boxes = [[0, 0, 1, 1], [5, 0, 6, 1], [9, 0, 10, 1]]
    detections = _call(batched_nms, boxes, [[0.25], [0.26], [0.24]], score_thresh=0.25)
    assert detections.indices.tolist() == [1]


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("num_classes", [1, 4])
def test_no_boxes(function, num_classes):
    detections = _call(function, torch.zeros(0, 4), torch.zeros(0, num_classes))
    assert [x.shape for x in detections] == [(0,)] * 3
    assert detections.indices.dtype == detections.classes.dtype == torch.int64
    assert detections.scores.dtype == torch.float32


@pytest.mark.parametrize("function", ALL)
def test_found_by_its_name(function):
    assert get_nms(function.__name__) is function is NMS_REGISTRY.get(function.__name__)


def test_unknown_name_lists_the_known_ones():
    known = "batched_nms, cross_class_fast_nms, fast_nms"
    with pytest.raises(ValueError, match=rf"MODEL\.YOLACT\.NMS is 'fastnms', .*: {known}"):
        get_nms("fastnms")
