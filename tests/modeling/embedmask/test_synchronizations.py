"""What makes the host wait for a GPU in a training step: operations that need values of tensors on
it, and copies."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils.events import EventStorage
from fake_gpu import DEVICE, GPUTensor, fake_gpu
from small_models import tiny_embedmask, training_input
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
}


class Synchronizations(TorchDispatchMode):
    """The names of operations that wait, and "copy" for each tensor moved to the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        indices = args[1] if name in ("aten::index", "aten::index_put_") else ()
        waits = name in _WAITING or any(x is not None and x.dtype == torch.bool for x in indices)
        if any(isinstance(x, GPUTensor) for x in tree_leaves((args, kwargs))):
            self.names += [name] * waits
        elif name == "aten::_to_copy" and str(kwargs.get("device")) == DEVICE:
            self.names.append("copy")
        return func(*args, **kwargs)


def waiting_operations(model, inputs):
    with fake_gpu(), EventStorage():
        model.to(DEVICE).train()
        with Synchronizations() as seen:
            sum(model(inputs).values()).backward()
    return seen.names


def build_fcos(backbone):
    """Detectron2's FCOS on a backbone of ours."""
    shapes = [ShapeSpec(channels=64, stride=stride) for stride in (8, 16, 32, 64, 128)]
    return FCOS(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, num_classes=4, conv_dims=[64, 64], norm="GN"),
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        num_classes=4,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )


def test_a_training_step_waits_no_more_often_than_fcos():
    boxes = [[4, 4, 40, 50], [30, 10, 90, 60], [60, 2, 70, 9]]
    inputs = [training_input(boxes), training_input([]), training_input(boxes[:2])]
    model = tiny_embedmask(
        MODEL__BACKBONE__NAME="build_fcos_fpn_backbone",
        MODEL__ANCHOR_GENERATOR__SIZES=[[8], [16], [32], [64], [128]],
        MODEL__EMBEDMASK__IN_FEATURES=["p3", "p4", "p5", "p6", "p7"],
        MODEL__EMBEDMASK__SIZES_OF_INTEREST=[64, 128, 256, 512],
    )
    ours, theirs = (waiting_operations(m, inputs) for m in (model, build_fcos(model.backbone)))
    assert ours.count("copy") == theirs.count("copy") > 0
    assert [x for x in ours if x != "copy"] == ["aten::nonzero"]  # the positives of all images
    assert len(theirs) > len(ours)
