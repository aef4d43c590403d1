import os

import pytest

from yolact_d2 import load_config

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def shapes_cfg():
    """The config of the shapes model, for the CPU."""
    return load_config(os.path.join(REPO, "configs", "yolact_shapes.yaml"), ["MODEL.DEVICE", "cpu"])
