"""Whether a checkpoint fits a model, and what to say if not."""

import logging
import os
import pickle
import re
from typing import List

import torch

from .names import (
    StateDict,
    from_official,
    from_plain_backbone,
    is_official,
    is_plain_backbone,
    to_official,
)

# Modules with an output for each class.
CLASS_LAYERS = ("head.cls_score.", "sem_seg_conv.")
_BOTTOM_UP = "backbone.bottom_up."
_CLASSIFIER = re.compile(r"(^|\.)(fc|linear)")
_RESNETS = {(2, 2, 2, 2): "ResNet-18", (3, 4, 6, 3): "ResNet-50", (3, 4, 23, 3): "ResNet-101"}
_OFFICIAL_NAMES = {
    ("ResNet-50", 80): "yolact_resnet50",
    ("ResNet-50", 20): "yolact_resnet50_pascal",
    ("ResNet-101", 80): "yolact_base, yolact_im400 or yolact_im700",
    ("DarkNet-53", 80): "yolact_darknet53",
}


class CheckpointMismatch(ValueError):
    """A checkpoint that is not one of this model."""


def fit_state_dict(state_dict: StateDict, model: StateDict, new_classes: bool) -> StateDict:
    """The tensors of a checkpoint under the names of a model.

    Takes checkpoints of this project, of the authors' code, of bare backbones (torchvision's, the
    authors', or any whose tensors have this model's names already), and nothing else.

    Args:
        state_dict: the checkpoint.
        model: the state dict of the model.
        new_classes: leave out the class layers if their number of classes differs, and say so.

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
    if not any(key.startswith("head.") for key in ours):
        # A backbone to train from, with the classifier that it was trained with.
        wanted = {key: value for key, value in wanted.items() if key.startswith(_BOTTOM_UP)}
        ours = {key: value for key, value in ours.items() if not _CLASSIFIER.search(key)}

    reshaped = [k for k in wanted if k in ours and ours[k].shape != wanted[k].shape]
    if new_classes and reshaped and all(key.startswith(CLASS_LAYERS) for key in reshaped):
        logging.getLogger(__name__).warning(
            f"Left fresh, for another number of classes: {', '.join(reshaped)}"
        )
        for key in reshaped:
            del ours[key], wanted[key]
        reshaped = []

    missing = [key for key in wanted if key not in ours]
    unexpected = [key for key in ours if key not in model]
    if missing or unexpected or reshaped:
        shapes = [f"{k} {tuple(ours[k].shape)} for {tuple(wanted[k].shape)}" for k in reshaped]
        message = f"this is {describe(state_dict)}; the config's model is {describe(model)}"
        if reshaped and all(key.startswith(CLASS_LAYERS) for key in reshaped):
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


def _first(what: str, keys: List[str], limit: int = 3) -> str:
    if not keys:
        return ""
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"\n  {what}: {', '.join(keys[:limit])}{rest}"


def describe(state_dict: StateDict) -> str:
    """What a state dict, in the authors' names or ours, looks like, in a few words."""
    if is_plain_backbone(state_dict):
        return f"a bare {_backbone_name(to_official(from_plain_backbone(state_dict)))}"
    official = state_dict if is_official(state_dict) else to_official(state_dict)
    backbone = _backbone_name(official)
    if not is_official(official):
        return "no checkpoint of YOLACT" if backbone == "no backbone" else f"a bare {backbone}"
    num_anchors = len(official["prediction_layers.0.bbox_layer.bias"]) // 4
    num_classes = len(official["prediction_layers.0.conf_layer.bias"]) // num_anchors - 1
    plus = any("conv_offset_mask" in key or "maskiou_net" in key for key in official)
    family = "YOLACT++" if plus else "YOLACT"
    text = f"{family} with {backbone}, {num_classes} classes, {num_anchors} anchors a cell"
    known = None if plus else _OFFICIAL_NAMES.get((backbone, num_classes))
    return f"{known} ({text})" if known else text


def _backbone_name(official: StateDict) -> str:
    if any(key.startswith("backbone._preconv.") for key in official):
        return "DarkNet-53"
    blocks = [re.match(r"backbone\.layers\.(\d+)\.(\d+)\.", key) for key in official]
    found = {(int(m[1]), int(m[2])) for m in blocks if m}
    if not found:
        return "no backbone"
    counts = tuple(sum(stage == i for stage, _ in found) for i in range(4))
    return _RESNETS.get(counts, f"a ResNet of {counts} blocks")


def read_state_dict(path: str) -> StateDict:
    """Read the model's tensors from a ``.pth`` file, without running any code it may contain.

    Raises:
        CheckpointMismatch: if it is damaged or no checkpoint; names the file.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointMismatch(
            f"{path} is not a checkpoint, or holds more than tensors and plain values, which is "
            f"not loaded from strangers: {error}"
        ) from error
    except Exception as error:  # whatever bytes that are no checkpoint lead the reader to
        raise CheckpointMismatch(f"{path} is truncated or not a checkpoint: {error}") from error
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("model"), dict):
        checkpoint = checkpoint["model"]
    if not isinstance(checkpoint, dict) or not all(
        isinstance(value, torch.Tensor) for value in checkpoint.values()
    ):
        raise CheckpointMismatch(f"{path} is not a checkpoint: it holds no dict of tensors")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def check_weights(path: str, model: StateDict, new_classes: bool) -> None:
    """Check before any work starts that a file fits a model.

    Only local ``.pth`` files are looked at; others are left to Detectron2, which knows more
    formats and fetches what is remote.

    Raises:
        CheckpointMismatch: naming the file, see :func:`fit_state_dict`.
    """
    if not path.endswith(".pth") or not os.path.isfile(path):
        return
    try:
        fit_state_dict(read_state_dict(path), model, new_classes)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"MODEL.WEIGHTS {path}: {error}") from error
