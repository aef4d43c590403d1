import pytest

from yolact_d2.benchmark.timing import median, p95, ratio, seconds, take_turns


def test_models_take_turns():
    calls = []
    results = take_turns(
        [lambda turn, name=name: calls.append(f"{name}{turn}") or name * turn for name in "abc"], 3
    )
    assert calls == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
    assert results == [["", "a", "aa"], ["", "b", "bb"], ["", "c", "cc"]]


def test_every_call_is_reported():
    ticks = []
    take_turns([lambda turn: None] * 3, 4, lambda: ticks.append(1))
    assert len(ticks) == 12


def test_median():
    assert median([5, 1, 100]) == 5
    assert median([4, 1, 100, 2]) == 3


def test_p95_lies_between_the_largest_values():
    assert p95(range(101)) == 95
    # 0.95 * 9 = 8.55 steps from the smallest.
    assert p95([10, 20, 30, 40, 50, 60, 70, 80, 90, 190]) == pytest.approx(90 + 0.55 * 100)
    assert p95([7]) == 7


def test_ratio_compares_within_a_round():
    # The machine was slow in the second round: the ratio is 2 all the same, of medians it is 2.5.
    reference, values = [1, 10, 4], [2, 20, 10]
    assert ratio(values, reference) == 2
    assert ratio(reference, reference) == 1


def test_seconds():
    times = iter([10.0, 12.5])
    called = []
    assert seconds(lambda: called.append(1), lambda: next(times)) == 2.5
    assert called == [1]
