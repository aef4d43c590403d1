import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import settings

from yolact_d2 import load_config

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The same examples in every run; a slow machine is no fault.
settings.register_profile("yolact_d2", deadline=None, derandomize=True, database=None)
settings.load_profile("yolact_d2")


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


@pytest.fixture(autouse=True)
def forget_datasets():
    """Remove the datasets that a test registers."""
    known = {*DatasetCatalog, *MetadataCatalog}
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in {*catalog} - known:
            catalog.remove(name)
