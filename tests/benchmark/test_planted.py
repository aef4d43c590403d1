import pytest
import torch
from plain import box_area, box_iou

from yolact_d2.benchmark.planted import plant_candidates, random_boxes
from yolact_d2.modeling.nms import NMS_REGISTRY


@pytest.mark.parametrize("number", [1, 100, 300])
def test_boxes_lie_in_the_picture_and_overlap_little(number):
    boxes = random_boxes(number)
    assert boxes.shape == (number, 4)
    assert (boxes >= 0).all() and (boxes <= 1).all()
    for i in range(number):
        for j in range(i):
            assert box_iou(boxes[i], boxes[j]) <= 0.3


def test_boxes_are_small_and_large():
    sizes = sorted(box_area(box) ** 0.5 for box in random_boxes(100))
    assert 0.03 <= sizes[0] < 0.05 and 0.3 < sizes[-1] <= 0.6


def test_boxes_follow_the_seed():
    assert (random_boxes(5, seed=1) == random_boxes(5, seed=1)).all()
    assert (random_boxes(5, seed=1) != random_boxes(5, seed=2)).any()


def test_there_is_room_for_any_number(monkeypatch):
    # Objects of half the picture's area.
    monkeypatch.setattr("yolact_d2.benchmark.planted._SIZE", (0.69, 0.7))
    assert len(random_boxes(60)) == 60


def test_candidates_are_close_to_their_objects():
    candidates = plant_candidates(20, 90)
    boxes = candidates.boxes.tolist()
    assert len(boxes) == 90
    assert candidates.objects.tolist() == [i % 20 for i in range(90)]
    for i in range(90):
        overlap = box_iou(boxes[i], boxes[i % 20])
        assert overlap == 1 if i < 20 else 0.7 < overlap < 1
    assert (candidates.scores[:-1] > candidates.scores[1:]).all()
    assert candidates.scores[19] > candidates.scores[20] + 0.2


@pytest.mark.parametrize("name", ["fast_nms", "cross_class_fast_nms", "batched_nms"])
def test_nms_keeps_the_objects_and_nothing_else(name):
    candidates = plant_candidates(20, 90)
    scores = torch.zeros(90, 3)
    for i in range(90):
        scores[i, candidates.objects[i] % 3] = candidates.scores[i]
    arguments = dict(score_thresh=0.05, iou_thresh=0.5, topk=200, max_detections=1000)
    found = NMS_REGISTRY.get(name)(candidates.boxes, scores, **arguments)
    kept = [i for i, score in zip(found.indices.tolist(), found.scores.tolist()) if score > 0]
    assert kept == list(range(20))
