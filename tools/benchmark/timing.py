"""Interleaved rounds, their statistics, and the clock that divides time among stages."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from torch.utils.benchmark.utils.timer import timer
from tqdm import tqdm

A = TypeVar("A")
R = TypeVar("R")


def interleave(
    calls: Sequence[Callable[[A], R]], arguments: Sequence[A], rounds: int, name: str
) -> list[list[R]]:
    """Call A B A B ..., so that whatever slows the machine down for a while slows all of them.

    Args:
        arguments: one for each round, from the first again after the last.
        name: shown by the progress bar.

    Returns:
        for each call its results, round by round.
    """
    results = []
    for i in tqdm(range(rounds), name, leave=False):
        results.append([call(arguments[i % len(arguments)]) for call in calls])
    return [list(column) for column in zip(*results)]


def summarize(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """
    Args:
        seconds: of each round.
        reference: those of the first model in the same rounds.

    Returns:
        "median", "p95" (the 95th percentile), "ratio" (the median, over the rounds, of the time
        divided by the reference's in that round) and "seconds" themselves.
    """
    return {
        "median": float(np.median(seconds)),
        "p95": float(np.percentile(seconds, 95)),
        "ratio": float(np.median(np.divide(seconds, reference))),
        "seconds": list(seconds),
    }


def median_by_key(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}


class StageClock:
    """Divides time among stages. Stages nest: each moment counts for the innermost one only, so
    they add up to the whole.

    Attributes:
        seconds: of each stage so far.
    """

    def __init__(self, now: Callable[[], float] = timer):
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = now
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context, or a decorator of a function."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
