"""Exported files beside models."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np

from yolact_runtime import Detections, Predictor

from .timing import StageClock

# By the functions of the runtime. NMS is in the file, so it counts as "heads".
_CALLS = (("preprocess", "prepare"), ("heads", "run"), ("masks", "paste"))


class ExportedDetector:
    """A file in its runtime, from BGR images to masks."""

    spec = None

    def __init__(self, label: str, path: str, bf16: bool = False):
        """
        Args:
            path, bf16: see :class:`yolact_runtime.Predictor`.
        """
        self.label, self.path = label, path
        self.factory = partial(ExportedDetector, label, path, bf16)
        self.predictor = Predictor(path, bf16=bf16)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """
        Args:
            images: (H, W, 3) uint8 each, BGR.
        """
        return [self.predictor(image) for image in images]

    def count(self, images: Sequence[np.ndarray]) -> list[int]:
        return [len(found.scores) for found in self(images)]

    def time(self, images: Sequence[np.ndarray]) -> float:
        """Seconds of a call."""
        start = perf_counter()
        self(images)
        return perf_counter() - start

    def time_stages(
        self, images: Sequence[np.ndarray], now: Callable[[], float] = perf_counter
    ) -> dict[str, float]:
        """Seconds of each stage of a call, which add up to the whole."""
        clock = StageClock(now)
        with ExitStack() as stack:
            for stage, name in _CALLS:
                timed = clock.stage(stage)(getattr(self.predictor, name))
                stack.enter_context(patch.object(self.predictor, name, timed))
            with clock.stage("masks"):
                self(images)
        return dict(clock.seconds)

    def describe(self) -> dict[str, Any]:
        return {"model": self.label, "config_file": self.path, "weights": self.path}


def parse_exported(words: Sequence[str]) -> partial:
    """
    Args:
        words: LABEL FILE [bf16].

    Raises:
        ValueError: naming the wrong word.
    """
    if len(words) not in (2, 3) or words[2:] not in ([], ["bf16"]):
        raise ValueError(f"an exported model is LABEL FILE [bf16], not {' '.join(words)!r}")
    factory = partial(ExportedDetector, words[0], words[1], len(words) == 3)
    try:
        factory()
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"{words[0]}: {error}") from error
    return factory
