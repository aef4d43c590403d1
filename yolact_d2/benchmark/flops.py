"""Arithmetic of a forward pass, counted by fvcore."""

import logging
from typing import NamedTuple

import numpy as np
import torch
from detectron2.utils.analysis import FlopCountAnalysis

from .runner import Runner


class Flops(NamedTuple):
    gflops: float
    """Thousands of millions; a multiplication and the addition after it are one."""
    unsupported: dict[str, int]
    """Calls of operators that fvcore cannot count."""


@torch.no_grad()
def count_flops(runner: Runner, picture: np.ndarray) -> Flops:
    """
    Args:
        runner: of the variant "float32"; its model is traced.
        picture: (H, W, 3), BGR, one that the runner is calibrated for.
    """
    inputs = runner.preprocess([picture])
    runner([picture])  # so that what is prepared once is not traced
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with runner.active(inputs):
        analysis = FlopCountAnalysis(runner.model, inputs)
    analysis.tracer_warnings("none")
    with runner.active(inputs):
        total = analysis.total()
    return Flops(total / 1e9, dict(analysis.unsupported_ops()))
