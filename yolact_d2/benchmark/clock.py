"""Time lines: which stage each moment belongs to."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from .anatomy import Anatomy

STAGES = ("preprocess", "backbone", "heads", "nms", "masks")

Now = Callable[[], float]


def device_clock(device: torch.device) -> Now:
    """Seconds, once the device has done all that it was given."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


class StageClock:
    """Divides the time from `start` to `stop` among stages.

    Stages nest, as NMS does inside the heads of an R-CNN: a moment counts for the innermost stage
    only, so the stages add up to the whole.
    """

    def __init__(self, now: Now):
        self._now = now
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def start(self, stage: str) -> None:
        self._open = [stage]
        self._since = self._now()

    def stop(self) -> dict[str, float]:
        """Seconds of each stage that there was."""
        self._cut()
        self._open = []
        return self.seconds

    def turn_to(self, stage: str) -> None:
        """The outermost stage is over; another one begins."""
        self._cut()
        self._open[0] = stage

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        self._cut()
        self._open.append(stage)
        try:
            yield
        finally:
            self._cut()
            self._open.pop()

    def _cut(self) -> None:
        now = self._now()
        stage = self._open[-1]
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


class _Watched:
    """Stands in for a function or a module: is called as it, and has its attributes."""

    def __init__(self, part: Callable, clock: StageClock, stage: str, after: str):
        self._part, self._clock = part, clock
        self._stage, self._after = stage, after

    def __call__(self, *args, **kwargs):
        with self._clock.inside(self._stage):
            result = self._part(*args, **kwargs)
        if self._after:
            self._clock.turn_to(self._after)
        return result

    def __getattr__(self, name: str):
        return getattr(self._part, name)


@contextmanager
def observed(anatomy: Anatomy, clock: StageClock) -> Iterator[None]:
    """While it lasts, calls of the model turn the clock, which must be running."""
    # Not with hooks, which run within a compiled module, if at all.
    watched = [
        (anatomy.preprocess, "preprocess", ""),
        (anatomy.backbone, "backbone", "heads"),
        (anatomy.final_nms, "nms", "masks" if anatomy.masks_follow_nms else ""),
        *((place, "nms", "") for place in anatomy.other_nms),
        *((place, "masks", "") for place in anatomy.masks),
    ]
    with ExitStack() as stack:
        for place, stage, after in watched:
            watch = partial(_Watched, clock=clock, stage=stage, after=after)
            stack.enter_context(place.replaced(watch))
        yield
