"""Fast NMS against a plain loop and against ordinary NMS, for boxes and scores of any kind."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import box_area, box_intersection
from strategies import grid_boxes, scores, tensors

from yolact_d2.modeling.nms import NMS_REGISTRY, batched_nms, cross_class_fast_nms, fast_nms

THRESHOLDS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
NO_LIMITS = dict(score_thresh=-1.0, topk=10**6, max_detections=10**6)


def _iou(a, b):
    both = box_intersection(a, b)
    return both / (box_area(a) + box_area(b) - both) if both > 0 else 0.0


def _overlappers(boxes, ranked, iou_thresh):
    """For each of the ranked boxes the better ones that overlap it too much."""
    return {
        box: [better for better in ranked[:i] if _iou(boxes[better], boxes[box]) > iou_thresh]
        for i, box in enumerate(ranked)
    }


def _ordinary(ranked, overlappers):
    kept = []
    for box in ranked:
        if not set(overlappers[box]) & set(kept):
            kept.append(box)
    return kept


@st.composite
def _boxes_and_scores(draw, distinct, max_classes=3, **kwargs):
    boxes = draw(grid_boxes(**kwargs))
    return boxes, draw(scores(len(boxes), draw(st.integers(1, max_classes)), distinct))


def _pairs(detections):
    return list(zip(detections.indices.tolist(), detections.classes.tolist()))


@settings(max_examples=300)
@given(_boxes_and_scores(False), THRESHOLDS, st.integers(1, 14), st.integers(1, 20))
def test_fast_nms_is_the_plain_loop(drawn, iou_thresh, topk, max_detections):
    boxes, class_scores = drawn
    found = fast_nms(
        boxes,
        class_scores,
        score_thresh=0.5,
        iou_thresh=iou_thresh,
        topk=topk,
        max_detections=max_detections,
    )
    # Boxes of equal scores may come in any order: in that of topk.
    best, order = class_scores.t().topk(min(topk, len(boxes)), dim=1)
    assert (best[:, :-1] >= best[:, 1:]).all()
    expected = []
    for c, ranked in enumerate(order.tolist()):
        overlappers = _overlappers(boxes.tolist(), ranked, iou_thresh)
        expected += [(box, c) for box in ranked if not overlappers[box]]

    pairs = _pairs(found)
    assert set(pairs) <= set(expected) and len(set(pairs)) == len(pairs)
    assert found.scores.tolist() == [class_scores[box, c] for box, c in pairs]
    best_scores = sorted((class_scores[box, c].item() for box, c in expected), reverse=True)
    assert found.scores.tolist() == best_scores[:max_detections]


@settings(max_examples=100)
@given(_boxes_and_scores(False), THRESHOLDS, st.integers(1, 14), st.integers(1, 20))
def test_cross_class_fast_nms_is_the_plain_loop(drawn, iou_thresh, topk, max_detections):
    boxes, class_scores = drawn
    found = cross_class_fast_nms(
        boxes,
        class_scores,
        score_thresh=0.5,
        iou_thresh=iou_thresh,
        topk=topk,
        max_detections=max_detections,
    )
    best = class_scores.max(dim=1).values
    ranked = best.topk(min(topk, len(boxes))).indices.tolist()
    overlappers = _overlappers(boxes.tolist(), ranked, iou_thresh)
    kept = [box for box in ranked if not overlappers[box]][:max_detections]
    assert found.indices.tolist() == kept
    assert found.scores.tolist() == best[kept].tolist()
    assert torch.equal(class_scores[kept, found.classes], best[kept])


@settings(max_examples=300)
@given(_boxes_and_scores(True, max_exponent=26), THRESHOLDS)
def test_fast_nms_drops_what_only_suppressed_boxes_overlap_and_no_more(drawn, iou_thresh):
    boxes, class_scores = drawn
    fast = set(_pairs(fast_nms(boxes, class_scores, iou_thresh=iou_thresh, **NO_LIMITS)))
    ordinary = set(_pairs(batched_nms(boxes, class_scores, iou_thresh=iou_thresh, **NO_LIMITS)))
    assert fast <= ordinary

    expected, by_suppressed_alone = set(), set()
    for c in range(class_scores.shape[1]):
        ranked = class_scores[:, c].argsort(descending=True).tolist()
        overlappers = _overlappers(boxes.tolist(), ranked, iou_thresh)
        kept = set(_ordinary(ranked, overlappers))
        expected |= {(box, c) for box in kept}
        by_suppressed_alone |= {
            (box, c)
            for box, better in overlappers.items()
            if better and not kept.intersection(better)
        }
    assert ordinary == expected
    assert ordinary - fast == by_suppressed_alone


@settings(max_examples=50)
@given(st.integers(2, 9), st.integers(-40, 40), st.integers(-40, 40))
def test_of_a_chain_fast_nms_keeps_the_first_and_ordinary_nms_every_other_one(num, x, exponent):
    """Each box overlaps the next by 3 / 5, and the one after it by 1 / 3."""
    start = torch.arange(num, dtype=torch.float32) * 2 + x
    boxes = torch.stack([start, start * 0, start + 8, start * 0 + 1], dim=1) * 2.0**exponent
    class_scores = torch.linspace(0.9, 0.1, num)[:, None]
    fast = fast_nms(boxes, class_scores, iou_thresh=0.5, **NO_LIMITS)
    ordinary = batched_nms(boxes, class_scores, iou_thresh=0.5, **NO_LIMITS)
    assert fast.indices.tolist() == [0]
    assert ordinary.indices.tolist() == list(range(0, num, 2))


@settings(max_examples=50)
@given(st.data(), st.integers(0, 8), st.sampled_from(["fast_nms", "cross_class_fast_nms"]))
def test_any_finite_numbers_are_taken(data, num, name):
    """Even what are no boxes, and areas that overflow: scores come out as they went in."""
    boxes, class_scores = data.draw(tensors((num, 4))), data.draw(scores(num, 2, False))
    found = NMS_REGISTRY.get(name)(boxes, class_scores, iou_thresh=0.5, **NO_LIMITS)
    assert torch.equal(found.scores, class_scores[found.indices, found.classes])


@settings(max_examples=100)
@given(_boxes_and_scores(True, max_classes=80, max_exponent=5), st.sampled_from([1e5, 1e6]))
def test_a_box_far_away_changes_nothing_for_the_others(drawn, distance):
    """It lies where the network may put an anchor's if it is badly wrong."""
    boxes, class_scores = drawn
    far = torch.tensor([[distance, 0, distance + 1, 1]])
    all_boxes = torch.cat([boxes, far])
    all_scores = torch.cat([class_scores, torch.full((1, class_scores.shape[1]), 0.999)])
    for function in (fast_nms, batched_nms):
        alone = _pairs(function(boxes, class_scores, iou_thresh=0.4, **NO_LIMITS))
        found = _pairs(function(all_boxes, all_scores, iou_thresh=0.4, **NO_LIMITS))
        assert [pair for pair in found if pair[0] < len(boxes)] == alone
