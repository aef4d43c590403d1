"""Stages that run ahead: order, bounds, errors, and that they end."""

import itertools
import threading
import time

import numpy as np
import pytest
from plain import eventually

from yolact_d2.inference.pipeline import Stages, batched, process
from yolact_d2.inference.sources import Frame


def test_batches():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []


def test_order_is_kept_through_many_stages():
    with Stages() as stages:
        items = iter(range(200))
        for depth in (1, 3, 7):
            items = stages.ahead(map(lambda x: x + 1, items), depth)
        assert list(items) == list(range(3, 203))


def test_a_stage_runs_no_further_ahead_than_it_may():
    taken = []
    with Stages() as stages:
        items = stages.ahead((taken.append(i) or i for i in range(100)), 3)
        assert next(items) == 0
        # One is read, three wait, and one is held, for which there is no room.
        assert eventually(lambda: len(taken) == 5)
        time.sleep(0.05)
        assert len(taken) == 5


def test_stages_work_at_the_same_time():
    """Each of two stages holds an item until the other has one too."""
    both = threading.Barrier(2, timeout=10)

    def meet(i):
        if 0 < i < 5:
            both.wait()
        return i

    with Stages() as stages:
        first = stages.ahead(map(meet, range(6)), 1)
        # The second sees i while the first is at i + 1.
        second = stages.ahead((meet(i + 1) - 1 if i < 4 else i for i in first), 1)
        assert list(second) == list(range(6))


def test_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise OSError("torn")

    seen = []
    with pytest.raises(OSError, match="torn"), Stages() as stages:
        for item in stages.ahead(stages.ahead(items(), 1), 1):
            seen.append(item)
    assert seen == [1, 2]


def test_leaving_ends_the_threads():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Stages() as stages:
        items = stages.ahead(stages.ahead(itertools.count(), 2), 2)
        assert next(items) == 0 and threading.active_count() == before + 2
        raise KeyboardInterrupt
    assert threading.active_count() == before


class FakePredictor:
    def __init__(self):
        self.sizes = []

    def predict(self, images):
        self.sizes.append(len(images))
        return [int(image[0, 0, 0]) for image in images]


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_frames_go_through_the_model_in_batches(batch_size, sizes):
    frames = [Frame(i, "video", np.full((2, 2, 3), 10 * i, np.uint8)) for i in range(5)]
    predictor = FakePredictor()
    with Stages() as stages:
        done = list(
            process(stages, frames, predictor, lambda image, found: image + found, batch_size)
        )
    assert predictor.sizes == sizes
    assert [frame.image_id for frame, _, _ in done] == list(range(5))
    assert [found for _, found, _ in done] == [0, 10, 20, 30, 40]
    assert [drawing.max() for _, _, drawing in done] == [0, 20, 40, 60, 80]
