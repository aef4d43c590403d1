"""Random checkpoints of the published models, and what is said of those that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from yolact_d2 import load_config
from yolact_d2.checkpoint import CheckpointMismatch, YOLACTCheckpointer

TESTS = Path(__file__).resolve().parent
# The config of each published model.
CONFIGS = {
    "yolact_resnet50": "yolact_R_50_FPN_550",
    "yolact_base": "yolact_R_101_FPN_550",
    "yolact_darknet53": "yolact_darknet53_FPN_550",
    "yolact_resnet50_pascal": "yolact_R_50_FPN_550_pascal",
    "yolact_plus_resnet50": "yolact_plus_R_50_FPN_550",
    "yolact_plus_base": "yolact_plus_R_101_FPN_550",
}
EMBEDMASK_CONFIGS = {
    "embedmask_R50": "embedmask_R_50_FPN_1x",
    "embedmask_R101": "embedmask_R_101_FPN_ms_3x",
}


def official(name):
    """Random tensors with the names and shapes of a published checkpoint."""
    shapes = json.loads((TESTS / "data" / f"{name}.keys.json").read_text())
    random = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(shape, generator=random) if shape else torch.tensor(7)
        for key, shape in shapes.items()
    }


def backbone_of(tensors):
    prefix = "backbone."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def build(name, *opts):
    path = str(TESTS.parent / "configs" / f"{name}.yaml")
    return build_model(load_config(path, ["MODEL.DEVICE", "cpu", *opts]))


def save(tmp_path, content, name="some.pth"):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def refused(model, path, warm_start=True, new_classes=False):
    checkpointer = YOLACTCheckpointer(model, new_classes=new_classes)
    with pytest.raises(CheckpointMismatch) as error:
        (checkpointer.warm_start if warm_start else checkpointer.load)(path)
    assert path in str(error.value)
    return str(error.value)
