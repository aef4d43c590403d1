"""Whether a checkpoint fits a model, and what to say if not."""

import os
import re

from .names import (
    StateDict,
    from_official,
    from_plain_backbone,
    is_official,
    is_plain_backbone,
    to_official,
    unknown_keys,
)
from .reading import CheckpointMismatch, read_state_dict, read_zoo_checkpoint, refuse_pyth

_BOTTOM_UP = "backbone.bottom_up."
_CLASSIFIER = re.compile(r"(^|\.)(fc|linear)")
_RESNETS = {(2, 2, 2, 2): "ResNet-18", (3, 4, 6, 3): "ResNet-50", (3, 4, 23, 3): "ResNet-101"}
# By backbone, classes, anchors of a cell, deformable blocks and whether masks are re-scored.
_OFFICIAL_NAMES = {
    ("ResNet-50", 80, 3, 0, False): "yolact_resnet50",
    ("ResNet-50", 20, 3, 0, False): "yolact_resnet50_pascal",
    ("ResNet-101", 80, 3, 0, False): "yolact_base, yolact_im400 or yolact_im700",
    ("DarkNet-53", 80, 3, 0, False): "yolact_darknet53",
    ("ResNet-50", 80, 9, 13, True): "yolact_plus_resnet50",
    ("ResNet-101", 80, 9, 11, True): "yolact_plus_base",
}


def is_class_layer(key: str) -> bool:
    """Whether a tensor of ours has an output for each class."""
    return key.startswith(("head.cls_score.", "sem_seg_conv.", "mask_iou_head.predictor."))


def _is_deformable_part(key: str, model: StateDict) -> bool:
    """Whether a tensor of `model` is what a deformable convolution has beyond an ordinary one."""
    module, _, leaf = key.rpartition(".")
    if module.endswith(".conv_offset_mask"):
        return True
    return leaf == "bias" and f"{module}.conv_offset_mask.weight" in model


def fit_state_dict(state_dict: StateDict, model: StateDict, new_classes: bool) -> StateDict:
    """The tensors of a checkpoint under the names of a model.

    Takes checkpoints of this project, of the authors' code, of bare backbones (torchvision's, the
    authors', or any whose tensors have this model's names already), and nothing else.

    Args:
        state_dict: the checkpoint.
        model: the state dict of the model.
        new_classes: leave out the class layers if they do not fit.

    Raises:
        CheckpointMismatch: if anything is missing, left over or of another shape. It says what the
            checkpoint looks like.
    """
    if is_official(state_dict):
        ours = from_official(state_dict)
    elif is_plain_backbone(state_dict):
        ours = from_plain_backbone(state_dict)
    else:
        ours = dict(state_dict)

    wanted = {key: value for key, value in model.items() if not key.endswith("num_batches_tracked")}
    # A bare backbone may come with the classifier that it was trained with.
    backbone = {k: v for k, v in ours.items() if k in model or not _CLASSIFIER.search(k)}
    if all(key.startswith(_BOTTOM_UP) for key in backbone):
        ours = backbone
        wanted = {key: value for key, value in wanted.items() if key.startswith(_BOTTOM_UP)}
        if not any(key.endswith("running_mean") for key in ours):
            # Detectron2's MSRA models have statistics of 0 and 1, which they leave out.
            wanted = {k: v for k, v in wanted.items() if ".running_" not in k}
        if not any(".conv_offset_mask." in key for key in ours):
            # Trained with ordinary convolutions, which is where deformable ones start.
            wanted = {k: v for k, v in wanted.items() if not _is_deformable_part(k, model)}

    reshaped = [k for k in wanted if k in ours and ours[k].shape != wanted[k].shape]
    missing = [key for key in wanted if key not in ours]
    unexpected = [key for key in ours if key not in model]
    # Detectron2's checkpointer takes tensors of another shape out before the model sees them.
    only_classes = not unexpected and all(is_class_layer(key) for key in reshaped + missing)
    if only_classes and new_classes:
        return {key: value for key, value in ours.items() if key not in reshaped}
    if missing or unexpected or reshaped:
        shapes = [f"{k} {tuple(ours[k].shape)} for {tuple(wanted[k].shape)}" for k in reshaped]
        message = f"this is {describe(state_dict)}; the config's model is {describe(model)}"
        if only_classes:
            message += (
                ". To fine-tune it on other classes set MODEL.YOLACT.NEW_CLASSES to True, or else "
                "set MODEL.YOLACT.NUM_CLASSES to the checkpoint's"
            )
        raise CheckpointMismatch(
            message
            + _first("missing", missing)
            + _first("unexpected", unexpected)
            + _first("of another shape", shapes)
        )
    return ours


def _first(what: str, keys: list[str], limit: int = 3) -> str:
    if not keys:
        return ""
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"\n  {what}: {', '.join(keys[:limit])}{rest}"


def describe(state_dict: StateDict) -> str:
    """What a state dict, in the authors' names or ours, looks like, in a few words."""
    if is_plain_backbone(state_dict):
        official = to_official(from_plain_backbone(state_dict))
    elif is_official(state_dict):
        official = state_dict
    else:
        official = to_official(state_dict)
    backbone = _backbone_name(official)
    if not any(key.startswith("prediction_layers.") for key in official):
        if backbone and not unknown_keys({k: v for k, v in official.items() if "fc." not in k}):
            return f"a bare {backbone}"
        prefixes = sorted({key.split(".")[0] for key in state_dict})
        return f"no checkpoint of YOLACT (it has {', '.join(prefixes[:5]) or 'no tensors'})"

    backbone = backbone or "no known backbone"
    num_deformable = sum(key.endswith(".conv_offset_mask.weight") for key in official)
    rescoring = any(key.startswith("maskiou_net.") for key in official)
    model = "YOLACT++" if num_deformable and rescoring else "YOLACT"
    num_outputs = len(official.get("prediction_layers.0.conf_layer.bias", ()))
    num_anchors = len(official.get("prediction_layers.0.bbox_layer.bias", ())) // 4
    if num_anchors == 0 or num_outputs == 0:
        return f"an incomplete checkpoint of {model} with {backbone}"
    num_classes = num_outputs // num_anchors - 1
    text = f"{model} with {backbone}, {num_classes} classes, {num_anchors} anchors a cell"
    if num_deformable:
        text += f", {num_deformable} deformable blocks"
    if rescoring:
        text += ", mask re-scoring"
    known = _OFFICIAL_NAMES.get((backbone, num_classes, num_anchors, num_deformable, rescoring))
    return f"{known} ({text})" if known else text


def _backbone_name(official: StateDict) -> str | None:
    if any(key.startswith("backbone._preconv.") for key in official):
        return "DarkNet-53"
    blocks = [re.match(r"backbone\.layers\.(\d+)\.(\d+)\.", key) for key in official]
    found = {(int(m[1]), int(m[2])) for m in blocks if m}
    if not found:
        return None
    counts = tuple(sum(stage == i for stage, _ in found) for i in range(4))
    return _RESNETS.get(counts, f"ResNet of {counts} blocks")


def check_weights(path: str, model: StateDict, new_classes: bool) -> None:
    """Check before any work starts that a file can be read safely and fits a model.

    What is remote is left to the checkpointer, and so are the names in Detectron2's ``.pkl`` files.

    Raises:
        CheckpointMismatch: naming the file, see :func:`fit_state_dict`.
    """
    refuse_pyth(path)
    if not os.path.isfile(path):
        return
    if path.endswith(".pkl"):
        read_zoo_checkpoint(path)
        return
    state_dict = read_state_dict(path)
    try:
        fit_state_dict(state_dict, model, new_classes)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{path}: {error}") from None


def check_weights_exist(weights: str) -> None:
    """Check a value of MODEL.WEIGHTS; what is remote is left to Detectron2.

    Raises:
        ValueError: if it is a path without a file.
    """
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise ValueError(f"MODEL.WEIGHTS: there is no file {weights!r}")
