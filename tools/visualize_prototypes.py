#!/usr/bin/env python3
"""Draw how YOLACT makes the masks of an image, as PNG files.

For the image NAME.jpg, NAME_prototypes.png shows its prototypes, and NAME_detection_0.png, ... show
the coefficients of each chosen detection, its mask as the strongest prototypes are added, and the
mask before and after the crop.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from yolact_d2 import Predictor
from yolact_d2.inference.inputs import AnyImage
from yolact_d2.inference.mask_program import build_parser, draw_figures
from yolact_d2.inference.panels import (
    TITLE_HEIGHT,
    draw_box,
    set_title,
    show_image,
    show_map,
    tint,
)
from yolact_d2.modeling.yolact.head import DensePredictions
from yolact_d2.modeling.yolact.masks import inside_boxes, scale_boxes

_POSITIVE, _NEGATIVE, _OTHER = "#c0392b", "#2c6fbb", "#c9ced6"  # as in the colour map RdBu_r
# Range of the logits shown: the sigmoid of 6 is 0.998.
_MAX_LOGIT = 6.0
_SHEET_ROWS = 4


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


def prototype_sheet(image: np.ndarray, prototypes: Tensor) -> Figure:
    """An image and its prototypes.

    Args:
        image: (H, W, 3) uint8, RGB.
        prototypes: (k, h, w).
    """
    aspect = image.shape[0] / image.shape[1]
    columns = math.ceil(len(prototypes) / _SHEET_ROWS)
    rows = max(math.ceil(len(prototypes) / columns), 2)
    # The image takes 2 x 2 tiles.
    figure = Figure(
        figsize=(1.6 * (columns + 2), rows * (1.6 * aspect + TITLE_HEIGHT)), layout="constrained"
    )
    figure.suptitle(f"{len(prototypes)} prototypes, each from 0 (dark) to its maximum (bright)")
    grid = figure.add_gridspec(rows, columns + 2)
    show_image(figure.add_subplot(grid[:2, :2]), image, "image")
    for i, prototype in enumerate(prototypes):
        axis = figure.add_subplot(grid[i // columns, 2 + i % columns])
        title = f"{i}   (max {prototype.max():.2g})"
        show_map(axis, prototype, image.shape[:2], title, "viridis", high=None)
    return figure


def detection_figure(
    image: np.ndarray, parts: MaskParts, index: int, class_name: str, num_steps: int = 6
) -> Figure:
    """How the mask of a detection is made.

    From top to bottom: the detection and its coefficients; the contributions of the strongest
    prototypes; the mask after each of them; the mask before and after the crop, and in the image.

    Args:
        image: (H, W, 3) uint8, RGB.
        parts: of this image.
        index: of the detection in `parts`.
        class_name: of the detection, see :func:`drawable_names`.
        num_steps: number of prototypes that are shown one by one.

    Raises:
        ValueError: if no cell of the box is inside the image.
    """
    prototypes, coefficients = parts.prototypes, parts.coefficients[index]
    inside = inside_boxes(parts.boxes[index : index + 1], *prototypes.shape[1:])[0]
    if not inside.any():
        raise ValueError(f"detection {index} is outside the image")
    order = strongest_first(prototypes, coefficients, inside)
    sums = partial_sums(prototypes, coefficients, order)
    shown = order[:num_steps].tolist()
    detection = parts.instances[index]
    box = detection.pred_boxes.tensor[0].tolist()

    tile_height = 2 * image.shape[0] / image.shape[1]
    heights = [2.2, *[tile_height + 2 * TITLE_HEIGHT] * 2, 1.6 * tile_height + 2 * TITLE_HEIGHT]
    columns = len(shown) + 1
    figure = Figure(figsize=(2 * columns + 0.6, sum(heights)), layout="constrained")
    parts_of_figure = figure.subfigures(4, 1, height_ratios=heights)
    first, second, third, fourth = parts_of_figure  # type: ignore[misc]

    set_title(first, "1. The detection: class, score, box and a coefficient for each prototype")
    left, right = first.subplots(1, 2, width_ratios=[1, columns - 1])
    show_image(left, image, f"{class_name}, score {float(detection.scores[0]):.2f}")
    draw_box(left, box)
    _draw_coefficients(right, coefficients, shown)

    set_title(second, "2. Contributions of the strongest prototypes to the logits of the mask")
    axes = second.subplots(1, columns, squeeze=False)[0]
    titles = [*(f"{coefficients[i]:+.2f} x prototype {i}" for i in shown), "sum of all"]
    terms = [*(coefficients[i] * prototypes[i] for i in shown), sums[-1]]
    logits = _show_row(axes, terms, titles, image, box, "RdBu_r")
    second.colorbar(logits, ax=axes[-1], shrink=0.8, extend="both")

    set_title(third, "3. Sigmoid of the sum so far, and its IoU with the final mask inside the box")
    axes = third.subplots(1, columns, squeeze=False)[0]
    ious = iou_with_final_mask(sums, inside)[: len(shown)]
    titles = [*(f"after {n}: IoU {iou:.2f}" for n, iou in enumerate(ious, start=1))]
    soft = [x.sigmoid() for x in (*sums[: len(shown)], sums[-1])]
    masks = _show_row(axes, soft, [*titles, f"after all {len(order)}"], image, box, "gray")
    third.colorbar(masks, ax=axes[-1], shrink=0.8)

    set_title(fourth, "4. The mask is cropped to the box (plus a margin of a cell) and thresholded")
    axes = fourth.subplots(1, 3)
    cropped = [soft[-1], soft[-1] * inside]
    _show_row(axes[:2], cropped, ["before the crop", "after the crop"], image, box, "gray")
    show_image(axes[2], tint(image, detection.pred_masks[0].numpy()), "above 0.5, in the image")
    draw_box(axes[2], box)
    return figure


def _show_row(axes, maps, titles, image, box, cmap) -> AxesImage:
    """Show maps (h, w) with the box: probabilities in gray, or logits in another colour map."""
    low, high = (0, 1) if cmap == "gray" else (-_MAX_LOGIT, _MAX_LOGIT)
    for axis, values, title in zip(axes, maps, titles):
        shown = show_map(axis, values, image.shape[:2], title, cmap, low, high)
        draw_box(axis, box)
    return shown


def _draw_coefficients(axis: Axes, coefficients: Tensor, shown: Sequence[int]) -> None:
    """Bars of all coefficients. Those in `shown` are coloured by sign and numbered."""
    values = coefficients.tolist()
    colors = [_POSITIVE if value > 0 else _NEGATIVE for value in values]
    colors = [color if i in shown else _OTHER for i, color in enumerate(colors)]
    bars = axis.bar(range(len(values)), values, color=colors)
    labels = [str(shown.index(i) + 1) if i in shown else "" for i in range(len(values))]
    axis.bar_label(bars, labels, label_type="center", color="white", fontsize=8, fontweight="bold")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylim(-1.05, 1.05)
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.set_xticks(range(len(values)))
    axis.tick_params(labelsize=7)
    axis.set_title(
        "coefficients; numbered by |coefficient| x RMS of the prototype inside the box", fontsize=9
    )
    axis.set_xlabel("prototype", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> int:
    parser = build_parser(__doc__)
    parser.add_argument("--steps", type=int, default=6, help="number of prototypes that are drawn")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}, less than 1")
    try:
        draw_figures(
            args,
            node="YOLACT",
            name="prototypes",
            record=record_mask_parts,
            draw_image=lambda image, parts: prototype_sheet(image, parts.prototypes),
            draw_detection=partial(detection_figure, num_steps=args.steps),
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
