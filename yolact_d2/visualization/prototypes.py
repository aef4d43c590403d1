"""How the masks of one picture come about: prototypes, coefficients and partial sums."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..modeling.head import DensePredictions
from ..modeling.masks import scale_boxes


class MaskParts(NamedTuple):
    """What the masks of one picture are made of, with N detections, best first."""

    prototypes: Tensor
    """(k, h, w)"""
    coefficients: Tensor
    """(N, k)"""
    boxes: Tensor
    """(N, 4) XYXY, in cells of the prototypes."""
    instances: Instances
    """The predictor's own result for the picture."""


def record_mask_parts(predictor: DefaultPredictor, image: np.ndarray) -> MaskParts:
    """Predict on a picture, and keep what the masks were made of.

    Args:
        predictor: with a YOLACT model.
        image: (H, W, 3) uint8, BGR.

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
        instances = predictor(image)["instances"]
    finally:
        for hook in hooks:
            hook.remove()

    prototypes = outputs["protonet"][0].float()
    predictions = DensePredictions(*(x[0].float() for x in outputs["head"]))
    boxes, _, _, coefficients = model.detect(Boxes.cat(outputs["anchor_generator"]), predictions)
    return MaskParts(
        prototypes.cpu(),
        coefficients.cpu(),
        scale_boxes(boxes, prototypes.shape[1:]).cpu(),
        instances.to("cpu"),
    )


def prototype_energies(prototypes: Tensor, inside: Tensor) -> Tensor:
    """Root mean square of each prototype over the cells of a box.

    Args:
        prototypes: (k, h, w).
        inside: (h, w) bool, at least one of them True.

    Returns:
        (k,)
    """
    return prototypes[:, inside].square().mean(dim=1).sqrt()


def strongest_first(prototypes: Tensor, coefficients: Tensor, inside: Tensor) -> Tensor:
    """The prototypes by what they do to a mask: \\|coefficient\\| x energy, largest first.

    The energy is that inside the box, because the mask is cropped to it.

    Args:
        prototypes: (k, h, w).
        coefficients: (k,) of one detection.
        inside: (h, w) bool, the cells of its box.

    Returns:
        (k,) indices of prototypes.
    """
    strengths = coefficients.abs() * prototype_energies(prototypes, inside)
    return strengths.argsort(descending=True, stable=True)


def build_up(prototypes: Tensor, coefficients: Tensor, order: Tensor) -> Tensor:
    """The mask logits of one detection after one, two, ... and all prototypes.

    Args:
        prototypes: (k, h, w).
        coefficients: (k,)
        order: (k,) indices, the prototype that is added first at the front.

    Returns:
        (k, h, w); the last is the mask as the model assembles it.
    """
    return (coefficients[order, None, None] * prototypes[order]).cumsum(dim=0)


def agreement(partial_logits: Tensor, inside: Tensor) -> Tensor:
    """IoU of the mask after each prototype with the final one, inside the box.

    Args:
        partial_logits: (k, h, w), as :func:`build_up` gives them.
        inside: (h, w) bool.

    Returns:
        (k,) in 0..1; 1 where both masks are empty.
    """
    masks = partial_logits[:, inside] > 0  # where the sigmoid is above 0.5
    both = (masks & masks[-1]).sum(dim=1)
    either = (masks | masks[-1]).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
