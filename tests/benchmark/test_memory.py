import os

import numpy as np
import pytest

from tools.benchmark.memory import high_water, peak_memory

MEGABYTE = 2**20


@pytest.mark.slow
def test_peak_of_a_new_process():
    block = np.ones(1000 * MEGABYTE, np.uint8)
    own = high_water()
    assert own > block.nbytes
    del block
    found = peak_memory(np.ones, 300 * MEGABYTE, "uint8")
    assert found["before"] < own - 500 * MEGABYTE
    assert 250 < (found["process"] - found["before"]) / MEGABYTE < 400


def test_a_process_that_dies_is_reported():
    assert "BrokenProcessPool" in peak_memory(os._exit, 9)["failure"]
