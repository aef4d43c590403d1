"""Translate state dicts between the authors' names and this project's.

Each module of the authors' code is one of ours under another name, tensor by tensor. Only the
class layer differs: theirs has background first, ours has it last.
"""

import re
from itertools import product

from torch import Tensor

StateDict = dict[str, Tensor]

_CLASS_LAYER = "prediction_layers.0.conf_layer"
_BOX_LAYER = "prediction_layers.0.bbox_layer"
_OUR_PREFIXES = ("backbone.bottom_up.", "backbone.fpn_", "head.", "protonet.")
_OFFICIAL_PREFIXES = (
    "prediction_layers.",
    "proto_net.",
    "fpn.",
    "semantic_seg_conv.",
    "maskiou_net.",
    *(f"backbone.{name}." for name in ("layers", "_preconv", "conv1", "bn1")),
)


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


_OURS = _module_names()
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def translate(state_dict: StateDict) -> StateDict:
    """Give the tensors of a checkpoint this project's names.

    Args:
        state_dict: under this project's names, or those of the authors' code, of the backbone
            files that the authors train from, or of torchvision's ResNets; with or without a
            prefix, see :func:`without_prefix`. Unknown names stay as they are.
    """
    state_dict = without_prefix(state_dict)
    if any(key.startswith(_OUR_PREFIXES) for key in state_dict):
        return dict(state_dict)  # a subclass may have any other names beside them
    if is_official(state_dict):
        return from_official(state_dict)
    return from_plain_backbone(state_dict) if is_plain_backbone(state_dict) else state_dict


def without_prefix(state_dict: StateDict) -> StateDict:
    """Remove a prefix that all names share, such as DataParallel's "module.", Lightning's "model."
    or torch.compile's "_orig_mod.", if known names follow. Beside "model." and "module." there may
    be other names, such as those of a loss, which are left out."""
    for prefix in () if _is_known(state_dict) else ("model.", "module."):
        inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if _is_known(inside):
            return inside
    shorter = state_dict
    while not _is_known(shorter):
        modules = {key.partition(".")[0] for key in shorter}
        if len(modules) != 1 or modules & shorter.keys():
            return state_dict
        shorter = {key.partition(".")[2]: value for key, value in shorter.items()}
    return shorter


def _is_known(state_dict: StateDict) -> bool:
    return (
        any(key.startswith(_OUR_PREFIXES) for key in state_dict)
        or is_official(state_dict)
        or is_plain_backbone(state_dict)
    )


def is_official(state_dict: StateDict) -> bool:
    """Whether any tensor has a name that only the authors' code has."""
    return any(key.startswith(_OFFICIAL_PREFIXES) for key in state_dict)


def is_plain_backbone(state_dict: StateDict) -> bool:
    """Whether the tensors have the names of torchvision's ResNets, or of the backbone files that
    the authors train from."""
    return any(re.match(r"(layer\d|layers\.\d|_preconv)\.", key) for key in state_dict)


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
        return _rename(_move_background(kept, -1), _OURS)
    # Without the number of anchors background cannot be moved: the class layer keeps its name.
    names = {theirs: ours for theirs, ours in _OURS.items() if theirs != _CLASS_LAYER}
    return _rename(kept, names)


def to_official(state_dict: StateDict) -> StateDict:
    """The inverse of :func:`from_official`."""
    return _move_background(_rename(state_dict, _THEIRS), 1)


def from_plain_backbone(state_dict: StateDict) -> StateDict:
    """Give the tensors of a backbone file this project's names, and leave out its classifier."""
    official = {}
    for key, value in state_dict.items():
        if not key.startswith("fc."):
            # torchvision counts stages from 1
            key = re.sub(r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}", key)
            official[f"backbone.{key}"] = value
    return _rename(official, _OURS)


def unknown_keys(state_dict: StateDict) -> list[str]:
    """Keys that neither the authors' code nor this project has."""
    modules = {*_OURS, *_THEIRS}
    return [key for key in state_dict if key.rpartition(".")[0] not in modules]


def _rename(state_dict: StateDict, names: dict[str, str]) -> StateDict:
    renamed = {}
    for key, value in state_dict.items():
        module, dot, leaf = key.rpartition(".")
        renamed[f"{names.get(module, module)}{dot}{leaf}"] = value
    return renamed


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
