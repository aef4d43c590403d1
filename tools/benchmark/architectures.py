"""What the benchmark knows about meta-architectures. A new one is one entry in ARCHITECTURES."""

from collections.abc import Callable
from typing import Any, NamedTuple

from detectron2.modeling.meta_arch import rcnn, retinanet
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from torch import nn

from yolact_d2.modeling.embedmask import embedmask
from yolact_d2.modeling.yolact import batch, yolact

STAGES = ("preprocess", "backbone", "heads", "nms", "masks")


class Call(NamedTuple):
    """A function that belongs to a stage: `owner.name`, as the model looks it up at each call."""

    stage: str
    owner: Any
    name: str


class Architecture(NamedTuple):
    score_threshold: str
    """Config key of the score that a detection must exceed."""
    calls: Callable[[nn.Module], list[Call]]
    """The calls of a model that mark stages. They may nest: the innermost counts. Whatever is in
    none of them belongs to "heads"."""


def _yolact_calls(model: nn.Module) -> list[Call]:
    calls = [
        Call("preprocess", model, "preprocess_image"),
        Call("masks", model, "inference_single_image"),
        Call("masks", yolact, "batch_instances"),
    ]
    if "detect_batch" in vars(model):  # compiled as a whole
        return calls
    return [
        *calls,
        Call("backbone", model.backbone, "forward"),
        Call("heads", model, "detect"),
        Call("nms", model, "nms"),
        Call("nms", batch, "fast_nms_of_batch"),
        Call("masks", yolact, "batch_masks"),
    ]


def _embedmask_calls(model: nn.Module) -> list[Call]:
    return [
        Call("preprocess", model, "preprocess_image"),
        Call("backbone", model.backbone, "forward"),
        Call("masks", model, "inference_single_image"),
        Call("heads", model, "detect"),
        Call("nms", embedmask, "batched_nms"),
    ]


def _rcnn_calls(model: nn.Module) -> list[Call]:
    calls = [
        Call("preprocess", model, "preprocess_image"),
        Call("backbone", model.backbone, "forward"),
        Call("nms", proposal_utils, "batched_nms"),
        Call("nms", fast_rcnn, "batched_nms"),
    ]
    if model.roi_heads.mask_on:
        calls.append(Call("masks", model.roi_heads, "forward_with_given_boxes"))
        calls.append(Call("masks", rcnn, "detector_postprocess"))
    return calls


def _retinanet_calls(model: nn.Module) -> list[Call]:
    return [
        Call("preprocess", model, "preprocess_image"),
        Call("backbone", model.backbone, "forward"),
        Call("nms", retinanet, "batched_nms"),
    ]


ARCHITECTURES = {
    "YOLACT": Architecture("MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", _yolact_calls),
    "EmbedMask": Architecture("MODEL.EMBEDMASK.CLASS_SCORE_THRESH_TEST", _embedmask_calls),
    "GeneralizedRCNN": Architecture("MODEL.ROI_HEADS.SCORE_THRESH_TEST", _rcnn_calls),
    "RetinaNet": Architecture("MODEL.RETINANET.SCORE_THRESH_TEST", _retinanet_calls),
}


def get_architecture(cfg) -> Architecture:
    """
    Raises:
        ValueError: if the benchmark does not know MODEL.META_ARCHITECTURE.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in ARCHITECTURES:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {name}; the benchmark knows {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
