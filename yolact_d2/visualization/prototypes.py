"""How the masks of an image are made: prototypes, coefficients and partial sums."""

from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..inference import Predictor
from ..inference.inputs import AnyImage
from ..modeling.head import DensePredictions
from ..modeling.masks import scale_boxes


class MaskParts(NamedTuple):
    """What the masks of an image are made of, for N detections, the best first."""

    prototypes: Tensor
    """(k, h, w)"""
    coefficients: Tensor
    """(N, k)"""
    boxes: Tensor
    """(N, 4) XYXY, in cells of the prototypes."""
    instances: Instances
    """The predictions for the image."""


@torch.no_grad()
def record_mask_parts(predictor: Predictor, image: AnyImage) -> MaskParts:
    """Predict on an image, and keep what the masks are made of.

    Args:
        image: see :class:`Predictor`.

    Returns:
        tensors on the CPU.
    """
    model, outputs = predictor.model, {}

    def keep(name):
        return lambda module, args, output: outputs.update({name: output})

    hooks = [
        getattr(model, name).register_forward_hook(keep(name))
        for name in ("anchor_generator", "head", "protonet")
    ]
    try:
        instances = predictor(image)
    finally:
        for hook in hooks:
            hook.remove()

    prototypes = outputs["protonet"][0].float()
    predictions = DensePredictions(*(x[0].float() for x in outputs["head"]))
    detected = model.detect(Boxes.cat(outputs["anchor_generator"]), predictions)
    boxes, coefficients = scale_boxes(detected[0], prototypes.shape[1:]).cpu(), detected[3].cpu()
    kept = predictor.kept(detected[2])
    return MaskParts(prototypes.cpu(), coefficients[kept], boxes[kept], instances)


def strongest_first(prototypes: Tensor, coefficients: Tensor, inside: Tensor) -> Tensor:
    """Sort prototypes by what they contribute to a mask, the largest contribution first.

    A contribution is the magnitude of the coefficient times the root mean square of the prototype
    inside the box, because the mask is cropped to the box.

    Args:
        prototypes: (k, h, w).
        coefficients: (k,) of one detection.
        inside: (h, w) bool, the cells of its box, at least one.

    Returns:
        (k,) indices of prototypes.
    """
    rms = prototypes[:, inside].square().mean(dim=1).sqrt()
    return (coefficients.abs() * rms).argsort(descending=True, stable=True)


def partial_sums(prototypes: Tensor, coefficients: Tensor, order: Tensor) -> Tensor:
    """The mask logits of a detection after its first, second, ... and last prototype.

    Args:
        prototypes: (k, h, w).
        coefficients: (k,) of the detection.
        order: (k,) indices of prototypes, in which they are added.

    Returns:
        (k, h, w); the last is the mask that the model assembles.
    """
    return (coefficients[order, None, None] * prototypes[order]).cumsum(dim=0)


def iou_with_final_mask(logits: Tensor, inside: Tensor) -> Tensor:
    """IoU of each partial mask with the final one, inside the box.

    Args:
        logits: (k, h, w), see :func:`partial_sums`.
        inside: (h, w) bool, the cells of the box.

    Returns:
        (k,) in 0..1; 1 where both masks are empty.
    """
    masks = logits[:, inside] > 0  # where the sigmoid is above 0.5
    intersection = (masks & masks[-1]).sum(dim=1)
    union = (masks | masks[-1]).sum(dim=1)
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
