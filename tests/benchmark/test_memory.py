import os

import numpy as np
import pytest
from small_models import BENCHMARK_MODELS

from tools.benchmark.measure import _detect
from tools.benchmark.memory import high_water, peak_memory
from tools.benchmark.models import parse_model

MEGABYTE = 2**20


def test_peak_of_a_new_process():
    block = np.ones(1000 * MEGABYTE, np.uint8)
    own = high_water()
    assert own > block.nbytes
    del block
    found = peak_memory(np.ones, 300 * MEGABYTE, "uint8")
    assert found["before"] < own - 500 * MEGABYTE
    assert 250 < (found["process"] - found["before"]) / MEGABYTE < 400


@pytest.mark.slow
def test_peak_of_a_model():
    spec = parse_model(BENCHMARK_MODELS["yolact"], "cpu")
    found = peak_memory(_detect, spec, "float32", [(60, 90, 0)], 1)
    assert found["gpu"] is None and 0 < found["before"] < found["process"]


def test_a_process_that_dies_is_reported():
    assert "BrokenProcessPool" in peak_memory(os._exit, 9)["failure"]
