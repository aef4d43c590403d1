import pytest

from tools.benchmark.timing import StageClock, interleave, median_by_key, summarize


def test_calls_are_interleaved():
    calls = []
    a, b = (lambda x, name=name: calls.append(name + x) or name + x for name in "AB")
    assert interleave([a, b], ["1", "2"], 3, "") == [["A1", "A2", "A1"], ["B1", "B2", "B1"]]
    assert calls == ["A1", "B1", "A2", "B2", "A1", "B1"]


def test_ratio_is_the_median_over_rounds():
    found = summarize([0.4, 0.6, 1.0], [0.1, 0.3, 0.2])
    assert found["median"] == 0.6 and found["seconds"] == [0.4, 0.6, 1.0]
    assert found["p95"] == pytest.approx(0.6 + 0.9 * 0.4)
    assert found["ratio"] == pytest.approx(4)  # of 4, 2 and 5
    assert median_by_key([{"a": 1}, {"a": 5}, {"a": 2}]) == {"a": 2}


def test_each_moment_counts_for_the_innermost_stage():
    now = [100.0]
    clock = StageClock(lambda: now[0])

    def work(seconds):
        now[0] += seconds

    nms = clock.stage("nms")(work)
    with clock.stage("heads"):
        work(4)
        with clock.stage("masks"):
            work(1)
            nms(2)
            work(0.5)
        nms(3)
    work(50)
    with clock.stage("heads"):
        work(0.25)
    assert clock.seconds == {"heads": 4.25, "masks": 1.5, "nms": 5}
