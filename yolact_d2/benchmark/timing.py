"""Taking turns, and what follows from the times."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from .clock import Now

T = TypeVar("T")


def take_turns(
    calls: Sequence[Callable[[int], T]], rounds: int, tick: Callable[[], object] = lambda: None
) -> list[list[T]]:
    """Call A B A B ..., so that whatever slows the machine for a while slows all of them.

    Args:
        calls: each is given the number of the round.
        rounds: how often.
        tick: called after each call.

    Returns:
        for each call what it returned, round by round.
    """
    results: list[list[T]] = [[] for _ in calls]
    for turn in range(rounds):
        for call, result in zip(calls, results):
            result.append(call(turn))
            tick()
    return results


def seconds(call: Callable[[], object], now: Now) -> float:
    start = now()
    call()
    return now() - start


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def p95(values: Sequence[float]) -> float:
    """The 95th percentile, between two values in proportion."""
    return float(np.percentile(values, 95))


def ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """The median, over the rounds, of a value as a multiple of the reference's in that round."""
    return median([value / other for value, other in zip(values, reference)])
