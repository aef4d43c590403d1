"""Names of the tensors in checkpoints of the authors' YOLACT code.

Each module of the authors' code is one of ours under another name, tensor by tensor. Only the
class layer differs: theirs has background first, ours has it last.
"""

import re
from itertools import product

from .state_dict import StateDict, rename

PREFIXES = (
    "prediction_layers.",
    "proto_net.",
    "fpn.",
    "semantic_seg_conv.",
    "maskiou_net.",
    *(f"backbone.{name}." for name in ("layers", "_preconv", "conv1", "bn1")),
)
_CLASS_LAYER = "prediction_layers.0.conf_layer"
_BOX_LAYER = "prediction_layers.0.bbox_layer"


def _module_names() -> dict[str, str]:
    """The authors' modules and ours, for all backbones."""
    names = {
        "proto_net.0": "protonet.convs.0",
        "proto_net.2": "protonet.convs.1",
        "proto_net.4": "protonet.convs.2",
        "proto_net.8": "protonet.upsampled_conv",
        "proto_net.10": "protonet.prototypes",
        "prediction_layers.0.upfeature.0": "head.conv",
        "prediction_layers.0.conf_layer": "head.cls_score",
        "prediction_layers.0.bbox_layer": "head.bbox_pred",
        "prediction_layers.0.mask_layer": "head.mask_coefficients",
        "semantic_seg_conv": "sem_seg_conv",
        "maskiou_net.maskiou_net.10": "mask_iou_head.predictor",
        "fpn.downsample_layers.0": "backbone.top_block.p6",
        "fpn.downsample_layers.1": "backbone.top_block.p7",
        # ResNet's stem, DarkNet's stem
        "backbone.conv1": "backbone.bottom_up.stem.conv1",
        "backbone.bn1": "backbone.bottom_up.stem.conv1.norm",
        "backbone._preconv.0": "backbone.bottom_up.stem",
        "backbone._preconv.1": "backbone.bottom_up.stem.norm",
    }
    for i in range(5):
        names[f"maskiou_net.maskiou_net.{2 * i}"] = f"mask_iou_head.convs.{i}"
    for i, level in enumerate((5, 4, 3)):
        names[f"fpn.lat_layers.{i}"] = f"backbone.fpn_lateral{level}"
        names[f"fpn.pred_layers.{i}"] = f"backbone.fpn_output{level}"
    # Five stages of 23 blocks are as many as any of the networks has.
    for stage, block in product(range(5), range(23)):
        theirs = f"backbone.layers.{stage}.{block}"
        resnet = f"backbone.bottom_up.res{stage + 2}.{block}"
        names[f"{theirs}.downsample.0"] = f"{resnet}.shortcut"
        names[f"{theirs}.downsample.1"] = f"{resnet}.shortcut.norm"
        for n in (1, 2, 3):
            names[f"{theirs}.conv{n}"] = f"{resnet}.conv{n}"
            names[f"{theirs}.bn{n}"] = f"{resnet}.conv{n}.norm"
        names[f"{theirs}.conv2.conv_offset_mask"] = f"{resnet}.conv2.conv_offset_mask"
        darknet = f"backbone.bottom_up.dark{stage + 1}.{block}"
        names[f"{theirs}.0"] = darknet
        names[f"{theirs}.1"] = f"{darknet}.norm"
        for n in (1, 2):
            names[f"{theirs}.conv{n}.0"] = f"{darknet}.conv{n}"
            names[f"{theirs}.conv{n}.1"] = f"{darknet}.conv{n}.norm"
    return names


OURS = _module_names()
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def from_official(state_dict: StateDict) -> StateDict:
    """Give the tensors of the authors' code this project's names.

    Unknown keys keep their names. Duplicate and unused tensors in checkpoints of version 1.0
    (``backbone.layer*``, ``fpn.downsample_layers`` from the third on) are left out.
    """
    kept = {
        key: value
        for key, value in state_dict.items()
        if not re.match(r"backbone\.layer\d|fpn\.downsample_layers\.([2-9]|\d\d)", key)
    }
    if f"{_BOX_LAYER}.bias" in kept:
        return rename(_move_background(kept, -1), OURS)
    # Without the number of anchors background cannot be moved: the class layer keeps its name.
    names = {theirs: ours for theirs, ours in OURS.items() if theirs != _CLASS_LAYER}
    return rename(kept, names)


def to_official(state_dict: StateDict) -> StateDict:
    """The inverse of :func:`from_official`."""
    return _move_background(rename(state_dict, THEIRS), 1)


def _move_background(state_dict: StateDict, places: int) -> StateDict:
    """Rotate the outputs of the class layer, one for each anchor and class."""
    moved = dict(state_dict)
    box_bias = moved.get(f"{_BOX_LAYER}.bias")
    for key in (f"{_CLASS_LAYER}.weight", f"{_CLASS_LAYER}.bias"):
        if key in moved and box_bias is not None:
            num_anchors = len(box_bias) // 4
            if num_anchors == 0 or len(moved[key]) % num_anchors:
                continue  # another kind of layer; loading it will fail
            by_anchor = moved[key].unflatten(0, (num_anchors, -1))
            moved[key] = by_anchor.roll(places, dims=1).flatten(0, 1)
    return moved
