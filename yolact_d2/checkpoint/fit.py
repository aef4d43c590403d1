"""Decide whether a checkpoint fits a model, and describe what it is if not."""

import re
from typing import Any

from .names import is_embedmask, translate
from .reading import CheckpointMismatch
from .state_dict import StateDict

_BOTTOM_UP = "backbone.bottom_up."
# Layers whose number of outputs depends on the number of classes.
_CLASS_LAYERS = ("head.cls_score.", "sem_seg_conv.", "mask_iou_head.predictor.")
# ImageNet classifiers, which backbone files may contain.
_CLASSIFIER = re.compile(r"(^|\.)(fc|linear)")
_RESNETS: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2): "ResNet-18",
    (3, 4, 6, 3): "ResNet-50",
    (3, 4, 23, 3): "ResNet-101",
}
# Keys: backbone, classes, anchors per location, deformable blocks, mask re-scoring.
_OFFICIAL_NAMES = {
    ("ResNet-50", 80, 3, 0, False): "yolact_resnet50",
    ("ResNet-50", 20, 3, 0, False): "yolact_resnet50_pascal",
    ("ResNet-101", 80, 3, 0, False): "yolact_base, yolact_im400 or yolact_im700",
    ("DarkNet-53", 80, 3, 0, False): "yolact_darknet53",
    ("ResNet-50", 80, 9, 13, True): "yolact_plus_resnet50",
    ("ResNet-101", 80, 9, 11, True): "yolact_plus_base",
}


def check_fit(
    loaded: StateDict, model: StateDict, incompatible: Any, *, warm_start: bool, new_classes: bool
) -> None:
    """Check the outcome of loading a checkpoint.

    Args:
        loaded: the checkpoint's tensors, under its own names.
        model: the model's state dict.
        incompatible: what Detectron2's checkpointer returned: `missing_keys`, `unexpected_keys`
            and `incorrect_shapes`, a list of (key, shape in the checkpoint, shape in the model).
        warm_start: accept backbones, and tensors of another shape.
        new_classes: with `warm_start`, accept another number of classes.

    Raises:
        CheckpointMismatch: saying what the checkpoint and the model are, and how they differ.
    """
    reshaped = {key: shapes for key, *shapes in incompatible.incorrect_shapes}
    missing = [key for key in incompatible.missing_keys if key not in reshaped]
    unexpected = list(incompatible.unexpected_keys)
    if warm_start and _is_backbone(loaded, model):
        missing = [key for key in missing if _is_needed(key, loaded, model)]
        unexpected = [key for key in unexpected if not _CLASSIFIER.search(key)]

    has_other_classes = _num_classes(translate(loaded)) not in (None, _num_classes(model))
    if warm_start and new_classes:
        missing = [key for key in missing if not key.startswith(_CLASS_LAYERS)]
    if warm_start:
        # Another pyramid or head starts from what fits, another backbone or other classes do not.
        fixed = (_BOTTOM_UP, *(_CLASS_LAYERS if has_other_classes and not new_classes else ()))
        reshaped = {key: shapes for key, shapes in reshaped.items() if key.startswith(fixed)}
    if not (missing or unexpected or reshaped):
        return
    message = f"this is {describe(loaded)}; the config's model is {describe(model)}"
    only_classes = all(key.startswith(_CLASS_LAYERS) for key in reshaped)
    node = "EMBEDMASK" if is_embedmask(model) else "YOLACT"
    if has_other_classes and only_classes and not missing and not unexpected:
        message += (
            f". To fine-tune it on other classes set MODEL.{node}.NEW_CLASSES to True, or else set "
            f"MODEL.{node}.NUM_CLASSES to the checkpoint's"
        )
    shapes_differ = [f"{key} {theirs} for {ours}" for key, (theirs, ours) in reshaped.items()]
    raise CheckpointMismatch(
        message
        + _first("missing", missing)
        + _first("unexpected", unexpected)
        + _first("of another shape", shapes_differ)
    )


def without_old_classes(ours: StateDict, model: StateDict) -> StateDict:
    """A checkpoint, under our names, without class layers that have the model's shapes but other
    classes: those of C classes and background fit C + 1 classes without background."""
    if _num_classes(ours) in (None, _num_classes(model)):
        return ours
    shapes = {key: x.shape for key, x in model.items() if key.startswith(_CLASS_LAYERS)}
    return {key: x for key, x in ours.items() if x.shape != shapes.get(key)}


def _is_backbone(loaded: StateDict, model: StateDict) -> bool:
    """Whether a checkpoint has no part of the model but the backbone.

    The names in Detectron2's .pkl files are not the model's.
    """
    return all(key.startswith(_BOTTOM_UP) for key in translate(loaded) if key in model)


def _is_needed(key: str, loaded: StateDict, model: StateDict) -> bool:
    """Whether a backbone file without this tensor of the model is incomplete."""
    if not key.startswith(_BOTTOM_UP):
        return False
    if ".running_" in key and not any(name.endswith("running_mean") for name in loaded):
        return False  # Detectron2's MSRA models leave out statistics, which are 0 and 1
    has_offsets = any(".conv_offset_mask." in name for name in loaded)
    return has_offsets or not _is_deformable(key, model)


def _is_deformable(key: str, model: StateDict) -> bool:
    """Whether a deformable convolution has this tensor and an ordinary one has not."""
    module, _, leaf = key.rpartition(".")
    if module.endswith(".conv_offset_mask"):
        return True
    return leaf == "bias" and f"{module}.conv_offset_mask.weight" in model


def _first(what: str, keys: list[str], limit: int = 3) -> str:
    if not keys:
        return ""
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"\n  {what}: {', '.join(keys[:limit])}{rest}"


def describe(state_dict: StateDict) -> str:
    """Say in a few words which model a state dict, under any known names, belongs to."""
    ours = translate(state_dict)
    backbone = _backbone_name(ours)
    # RetinaNet and FCOS have towers too, but predict no masks.
    has_towers = any(key.startswith("head.cls_subnet.") for key in ours)
    is_other = has_towers and not (is_embedmask(ours) or "head.mask_coefficients.bias" in ours)
    if is_other or not any(key.startswith("head.") for key in ours):
        if backbone and all(k.startswith(_BOTTOM_UP) or _CLASSIFIER.search(k) for k in ours):
            return f"a bare {backbone}"
        prefixes = sorted({key.split(".")[0] for key in state_dict})
        found = ", ".join(prefixes[:5]) or "no tensors"
        return f"no checkpoint of YOLACT or EmbedMask (it has {found})"

    backbone = backbone or "no known backbone"
    num_deformable = sum(key.endswith(".conv_offset_mask.weight") for key in ours)
    rescoring = any(key.startswith("mask_iou_head.") for key in ours)
    model = "YOLACT++" if num_deformable and rescoring else "YOLACT"
    if is_embedmask(ours):
        model = "EmbedMask"
    num_classes = _num_classes(ours)
    if num_classes is None:
        return f"an incomplete checkpoint of {model} with {backbone}"
    if is_embedmask(ours):
        return f"{model} with {backbone}, {num_classes} classes"
    num_anchors = len(ours["head.bbox_pred.bias"]) // 4
    text = f"{model} with {backbone}, {num_classes} classes, {num_anchors} anchors a cell"
    if has_towers:
        text += ", DecoupledHead"
    if not has_background(ours):
        text += ", without a background class"
    if num_deformable:
        text += f", {num_deformable} deformable blocks"
    if rescoring:
        text += ", mask re-scoring"
    known = _OFFICIAL_NAMES.get((backbone, num_classes, num_anchors, num_deformable, rescoring))
    return f"{known} ({text})" if known else text


def _num_classes(ours: StateDict) -> int | None:
    num_outputs = len(ours.get("head.cls_score.bias", ()))
    if is_embedmask(ours):
        return num_outputs or None
    num_anchors = len(ours.get("head.bbox_pred.bias", ())) // 4
    if not num_outputs or not num_anchors:
        return None
    return num_outputs // num_anchors - has_background(ours)


def has_background(ours: StateDict) -> bool:
    """Whether the class layer of a YOLACT has an output for background, unlike that of the
    semantic segmentation."""
    num_outputs, num_deltas, num_classes = (
        len(ours.get(f"{name}.bias", ()))
        for name in ("head.cls_score", "head.bbox_pred", "sem_seg_conv")
    )
    return num_classes == 0 or num_outputs != num_deltas // 4 * num_classes


def _backbone_name(ours: StateDict) -> str | None:
    if any(key.startswith(f"{_BOTTOM_UP}dark") for key in ours):
        return "DarkNet-53"
    matches = [re.match(rf"{re.escape(_BOTTOM_UP)}res(\d)\.(\d+)\.", key) for key in ours]
    blocks = {(int(m[1]), int(m[2])) for m in matches if m}
    counts = tuple(sum(stage == i for stage, _ in blocks) for i in range(2, 6))
    return _RESNETS.get(counts, f"ResNet of {counts} blocks") if blocks else None
