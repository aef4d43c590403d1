"""Fast NMS and its variants against plain loops and torchvision's NMS."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import box_area, box_intersection
from strategies import distinct_scores, integer_boxes, tensors
from torchvision.ops import nms

from yolact_d2.modeling.yolact import nms as module
from yolact_d2.modeling.yolact.nms import (
    NMS_REGISTRY,
    Detections,
    batched_nms,
    batched_pairwise_iou,
    cross_class_fast_nms,
    fast_nms,
    fast_nms_of_batch,
    get_nms,
    may_exceed,
)

ALL = [fast_nms, cross_class_fast_nms, batched_nms]
DEFAULTS = dict(score_thresh=0.05, iou_thresh=0.5, topk=200, max_detections=100)
NO_LIMITS = dict(score_thresh=-1.0, topk=10**6, max_detections=10**6)


def _call(function, boxes, scores, **changes):
    boxes, scores = torch.as_tensor(boxes, dtype=torch.float32), torch.as_tensor(scores)
    return function(boxes, scores, **{**DEFAULTS, **changes})


def _as_list(detections):
    """[(index, class, score), ...]"""
    return list(zip(*(x.tolist() for x in detections)))


def _random(num, num_classes, seed):
    """Overlapping boxes, some outside the image, with distinct scores."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(num, 2, generator=generator) * 0.6 - 0.1
    boxes = torch.cat([start, start + 0.1 + torch.rand(num, 2, generator=generator) * 0.5], dim=1)
    total = num * num_classes
    scores = (torch.randperm(total, generator=generator) + 0.5) / total
    return boxes, scores.reshape(num, num_classes)


def _iou(a, b):
    both = box_intersection(a, b)
    return both / (box_area(a) + box_area(b) - both) if both > 0 else 0.0


def _kept(boxes, ranked, iou_thresh):
    return [
        box
        for i, box in enumerate(ranked)
        if all(_iou(boxes[better], boxes[box]) <= iou_thresh for better in ranked[:i])
    ]


def _fast_nms_loop(boxes, scores, iou_thresh, topk, max_detections):
    found = []
    for c in range(len(scores[0]) if scores else 0):
        ranked = sorted(range(len(boxes)), key=lambda b: -scores[b][c])[:topk]
        found += [(b, c, scores[b][c]) for b in _kept(boxes, ranked, iou_thresh)]
    return sorted(found, key=lambda detection: -detection[2])[:max_detections]


def _cross_class_loop(boxes, scores, iou_thresh, topk, max_detections):
    ranked = sorted(range(len(boxes)), key=lambda b: -max(scores[b]))[:topk]
    kept = _kept(boxes, ranked, iou_thresh)[:max_detections]
    return [(b, scores[b].index(max(scores[b])), max(scores[b])) for b in kept]


@pytest.mark.parametrize(
    "function, loop", [(fast_nms, _fast_nms_loop), (cross_class_fast_nms, _cross_class_loop)]
)
@pytest.mark.parametrize(
    "iou_thresh, topk, max_detections",
    [(0.5, 200, 100), (0.3, 200, 10**6), (0.7, 15, 1000), (0.5, 200, 7), (1.0, 9, 20)],
)
def test_fast_nms_equals_the_loop(function, loop, iou_thresh, topk, max_detections):
    limits = dict(iou_thresh=iou_thresh, topk=topk, max_detections=max_detections)
    for num, num_classes in [(1, 1), (1, 5), (40, 1), (60, 4), (20, 17)]:
        boxes, scores = _random(num, num_classes, seed=num)
        expected = loop(boxes.tolist(), scores.tolist(), **limits)
        assert _as_list(_call(function, boxes, scores, **limits)) == expected


@pytest.mark.parametrize("score_thresh, max_detections", [(0.05, 10**6), (0.6, 10**6), (0.05, 9)])
def test_batched_nms_equals_torchvisions_nms_of_each_class(score_thresh, max_detections):
    for num, num_classes in [(1, 1), (50, 1), (70, 5)]:
        boxes, scores = _random(num, num_classes, seed=num)
        expected = []
        for c in range(num_classes):
            candidates = [b for b in range(num) if scores[b, c] > score_thresh]
            for i in nms(boxes[candidates], scores[candidates, c], 0.5).tolist():
                expected.append((candidates[i], c, scores[candidates[i], c].item()))
        expected = sorted(expected, key=lambda detection: -detection[2])[:max_detections]
        limits = dict(score_thresh=score_thresh, max_detections=max_detections)
        assert _as_list(_call(batched_nms, boxes, scores, **limits)) == expected


@st.composite
def _boxes_and_scores(draw, max_classes=3, **kwargs):
    boxes = draw(integer_boxes(**kwargs))
    return boxes, draw(distinct_scores(len(boxes), draw(st.integers(1, max_classes))))


@settings(max_examples=60)
@given(_boxes_and_scores(max_exponent=26), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_fast_nms_also_drops_boxes_that_only_suppressed_boxes_overlap(drawn, iou_thresh):
    """And no others, compared with ordinary NMS; for IoUs exactly at the threshold too."""
    boxes, class_scores = drawn
    limits = {**NO_LIMITS, "iou_thresh": iou_thresh}
    fast = {x[:2] for x in _as_list(fast_nms(boxes, class_scores, **limits))}
    ordinary = {x[:2] for x in _as_list(batched_nms(boxes, class_scores, **limits))}
    expected_fast, expected_ordinary = set(), set()
    for c in range(class_scores.shape[1]):
        ranked = class_scores[:, c].argsort(descending=True).tolist()
        expected_fast |= {(box, c) for box in _kept(boxes.tolist(), ranked, iou_thresh)}
        kept = []
        for box in ranked:
            if all(
                _iou(boxes[other].tolist(), boxes[box].tolist()) <= iou_thresh for other in kept
            ):
                kept.append(box)
        expected_ordinary |= {(box, c) for box in kept}
    assert fast == expected_fast and ordinary == expected_ordinary
    assert fast <= ordinary


@st.composite
def _equal_scores(draw):
    """Boxes, and scores of which many are equal or below 0."""
    boxes = draw(integer_boxes())
    values = st.sampled_from(draw(st.sampled_from([[0.5], [-1, 0], [-1, 0, 0.25, 0.5, 0.75]])))
    return boxes, draw(tensors((len(boxes), draw(st.integers(1, 6))), values))


@settings(max_examples=300)
@given(
    _boxes_and_scores(max_classes=6) | _equal_scores(),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    *[st.integers(1, 9)] * 3,
)
def test_the_best_pairs_give_what_all_pairs_give(drawn, iou_thresh, topk, max_detections, pairs):
    """In the same order: equal scores are in the order of their classes, then of their boxes."""
    boxes, scores = drawn
    limits = dict(iou_thresh=iou_thresh, topk=topk, max_detections=max_detections)
    expected = _fast_nms_loop(boxes.tolist(), scores.tolist(), **limits)
    expected = [detection for detection in expected if detection[2] >= 0]
    for best_pairs in (pairs, 10**6):
        with mock.patch.object(module, "_BEST_PAIRS", best_pairs):
            assert _as_list(_call(fast_nms, boxes, scores, **limits)) == expected
    for num in range(1, scores.numel() + 1):
        found = module._fast_nms_of_best_pairs(boxes, scores, num, **limits)
        assert found is None or _as_list(found) == expected


def test_the_best_of_many_pairs_give_what_all_pairs_give():
    num_exact = 0
    for seed in range(24):
        # 30, 300 or 3000 different scores; all classes alike, or few with high scores.
        num_values, num_classes, power = (
            30 * 10 ** (seed % 3),
            [3, 40][seed % 2],
            [1, 9][seed // 12],
        )
        boxes, scores = _random(350, num_classes, seed)
        scores *= torch.linspace(0.1, 1, num_classes) ** power
        scores = (scores * num_values).round() / num_values
        scores[::7] = -1
        limits = dict(iou_thresh=0.5, topk=[200, 20][seed // 6 % 2], max_detections=100)
        found = fast_nms_of_batch(boxes[None], scores[None], **limits)
        expected = Detections(*(x[0, found.scores[0] >= 0] for x in found))
        assert _as_list(_call(fast_nms, boxes, scores, **limits)) == _as_list(expected)
        best = module._fast_nms_of_best_pairs(boxes, scores, 400, **limits)
        assert best is None or _as_list(best) == _as_list(expected)
        num_exact += best is not None
    assert 5 < num_exact < 24


@settings(max_examples=50)
@given(_boxes_and_scores(max_classes=80, max_exponent=5), st.sampled_from([1e5, 1e6]))
def test_a_box_far_away_does_not_change_the_others(drawn, distance):
    boxes, class_scores = drawn
    far = torch.tensor([[distance, 0, distance + 1, 1]])
    all_boxes = torch.cat([boxes, far])
    all_scores = torch.cat([class_scores, torch.full((1, class_scores.shape[1]), 0.999)])
    for function in (fast_nms, batched_nms):
        alone = _as_list(function(boxes, class_scores, iou_thresh=0.4, **NO_LIMITS))
        found = _as_list(function(all_boxes, all_scores, iou_thresh=0.4, **NO_LIMITS))
        assert [x for x in found if x[0] < len(boxes)] == alone


def test_batched_nms_drops_scores_at_the_threshold():
    boxes = [[0, 0, 1, 1], [5, 0, 6, 1], [9, 0, 10, 1]]
    detections = _call(batched_nms, boxes, [[0.25], [0.26], [0.24]], score_thresh=0.25)
    assert detections.indices.tolist() == [1]


@pytest.mark.parametrize("function", ALL)
def test_boxes_with_an_iou_of_exactly_the_threshold_are_kept(function):
    boxes = [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 2.01]]
    detections = _call(function, boxes, [[0.9], [0.8], [0.7]])
    assert detections.indices.tolist() == [0, 1]


@pytest.mark.parametrize("function", ALL)
def test_one_of_identical_boxes_with_equal_scores_is_kept(function):
    assert len(_call(function, [[1, 2, 3, 5]] * 6, [[0.7]] * 6).indices) == 1


def test_only_boxes_that_may_exceed_the_threshold_need_a_softmax():
    """Their probabilities are the same to the bit, and those of the others are not above it."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        logits = (
            torch.randn(300, [2, 4, 81][seed % 3], generator=generator) * [1, 5, 40][seed // 3 % 3]
        )
        logits[:, -1] += [0, 4][seed % 2]
        logits[:3] *= torch.tensor([[1e4], [1e30], [1e38]])
        for row, value in enumerate([torch.inf, -torch.inf, torch.nan]):
            logits[3 + row, 0] = logits[6 + row, -1] = logits[9 + row] = value
        probabilities = logits.softmax(dim=1)
        best = probabilities[:, :-1].amax(dim=1)
        of_boxes = best[best > 1e-6][:9].tolist()
        for score_thresh in [0.01, 0.05, 0.5, 0.999, 1.0, 2.0, *of_boxes]:
            likely = may_exceed(logits, score_thresh)
            assert not (best > score_thresh)[~likely].any()
            found = logits[likely].softmax(dim=1)
            torch.testing.assert_close(found, probabilities[likely], rtol=0, atol=0, equal_nan=True)


def test_batched_pairwise_iou():
    boxes = _random(24, 1, 0)[0].reshape(2, 3, 4, 4)
    boxes[1] *= 1e-5  # boxes relative to the image are small
    before = boxes.clone()
    expected = [
        [[[_iou(a, b) for b in boxes] for a in boxes] for boxes in lists]
        for lists in boxes.tolist()
    ]
    iou = batched_pairwise_iou(boxes)
    torch.testing.assert_close(iou, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert torch.equal(boxes, before)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("num_classes", [1, 4])
def test_no_boxes(function, num_classes):
    detections = _call(function, torch.zeros(0, 4), torch.zeros(0, num_classes))
    assert [x.shape for x in detections] == [(0,)] * 3
    assert detections.indices.dtype == detections.classes.dtype == torch.int64
    assert detections.scores.dtype == torch.float32


def test_functions_are_found_by_name():
    for function in ALL:
        assert get_nms(function.__name__) is function is NMS_REGISTRY.get(function.__name__)
