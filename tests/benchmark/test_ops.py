import pytest
import torch

from yolact_d2.benchmark import ops

CPU = torch.device("cpu")


def test_nms_functions_find_the_same_objects():
    found = {name: call() for name, call in ops.nms_calls(100, CPU).items()}
    assert list(found) == ["fast_nms", "cross_class_fast_nms", "batched_nms"]
    for detections in found.values():
        good = detections.scores > 0
        assert detections.indices[good].tolist() == list(range(20))


def test_masks_have_the_size_of_the_picture():
    calls = ops.mask_calls(7, (40, 60), CPU)
    for call in calls.values():
        masks = call()
        assert masks.shape == (7, 40, 60) and masks.dtype == torch.bool
        assert 0 < masks.float().mean() < 0.5


def test_functions_take_turns(monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(ops, "device_clock", lambda device: lambda: float(next(times)))
    called = []

    def slow():
        called.append("slow")
        next(times)

    rows = ops.compare({"fast": lambda: called.append("fast"), "slow": slow}, CPU, repeats=3)
    assert called == ["fast", "slow"] * 5  # two of them to warm up
    assert rows == [
        {"name": "fast", "median": 1, "p95": 1, "ratio": 1},
        {"name": "slow", "median": 2, "p95": 2, "ratio": 2},
    ]


def test_tables():
    rows = ops.benchmark_nms([5, 10], CPU, repeats=1)
    assert [row["boxes"] for row in rows] == [5] * 3 + [10] * 3
    rows = ops.benchmark_masks([2], [(30, 40)], CPU, repeats=1)
    assert [(row["size"], row["name"]) for row in rows] == [
        ("40x30", "yolact_masks"),
        ("40x30", "paste_masks_in_image"),
    ]
    assert rows[0]["ratio"] == pytest.approx(1)
