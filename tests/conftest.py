import os

import pytest

from yolact_d2 import load_config

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _config(name):
    return load_config(os.path.join(REPO, "configs", f"{name}.yaml"), ["MODEL.DEVICE", "cpu"])


@pytest.fixture
def shapes_cfg():
    """The config of the shapes model, for the CPU."""
    return _config("yolact_shapes")


@pytest.fixture
def plus_shapes_cfg():
    """The config of the YOLACT++ shapes model, for the CPU."""
    return _config("yolact_plus_shapes")
