#!/usr/bin/env python3
"""Draw how YOLACT makes the masks of an image, as PNG files.

For the image NAME.jpg, NAME_prototypes.png shows its prototypes, and NAME_detection_0.png, ... show
the coefficients of each chosen detection, its mask as the strongest prototypes are added, and the
mask before and after the crop.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from yolact_d2 import Predictor, load_config
from yolact_d2.config import model_node
from yolact_d2.data import read_image
from yolact_d2.files import atomic_write
from yolact_d2.inference import drawing_threshold
from yolact_d2.inference.inputs import AnyImage
from yolact_d2.inference.labels import FONTS, with_drawable_names
from yolact_d2.modeling.yolact.head import DensePredictions
from yolact_d2.modeling.yolact.masks import inside_boxes, scale_boxes

_BOX_COLOR = "#ff9f1c"
_MASK_COLOR = "#ff2d87"
_POSITIVE, _NEGATIVE, _OTHER = "#c0392b", "#2c6fbb", "#c9ced6"  # as in the colour map RdBu_r
# Range of the logits shown: the sigmoid of 6 is 0.998.
_MAX_LOGIT = 6.0
_SHEET_ROWS = 4
_TITLE_HEIGHT = 0.3  # inches


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


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


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
        figsize=(1.6 * (columns + 2), rows * (1.6 * aspect + _TITLE_HEIGHT)), layout="constrained"
    )
    figure.suptitle(f"{len(prototypes)} prototypes, each from 0 (dark) to its maximum (bright)")
    grid = figure.add_gridspec(rows, columns + 2)
    _show(figure.add_subplot(grid[:2, :2]), image, "image")
    for i, prototype in enumerate(prototypes):
        axis = figure.add_subplot(grid[i // columns, 2 + i % columns])
        title = f"{i}   (max {prototype.max():.2g})"
        _show_map(axis, prototype, image, title, "viridis", 0)
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
    heights = [2.2, *[tile_height + 2 * _TITLE_HEIGHT] * 2, 1.6 * tile_height + 2 * _TITLE_HEIGHT]
    columns = len(shown) + 1
    figure = Figure(figsize=(2 * columns + 0.6, sum(heights)), layout="constrained")
    parts_of_figure = figure.subfigures(4, 1, height_ratios=heights)
    first, second, third, fourth = parts_of_figure  # type: ignore[misc]

    _title(first, "1. The detection: class, score, box and a coefficient for each prototype")
    left, right = first.subplots(1, 2, width_ratios=[1, columns - 1])
    _show(left, image, f"{class_name}, score {float(detection.scores[0]):.2f}")
    _draw_box(left, box)
    _draw_coefficients(right, coefficients, shown)

    _title(second, "2. Contributions of the strongest prototypes to the logits of the mask")
    axes = second.subplots(1, columns, squeeze=False)[0]
    titles = [*(f"{coefficients[i]:+.2f} x prototype {i}" for i in shown), "sum of all"]
    terms = [*(coefficients[i] * prototypes[i] for i in shown), sums[-1]]
    logits = _show_row(axes, terms, titles, image, box, "RdBu_r")
    second.colorbar(logits, ax=axes[-1], shrink=0.8, extend="both")

    _title(third, "3. Sigmoid of the sum so far, and its IoU with the final mask inside the box")
    axes = third.subplots(1, columns, squeeze=False)[0]
    ious = iou_with_final_mask(sums, inside)[: len(shown)]
    titles = [*(f"after {n}: IoU {iou:.2f}" for n, iou in enumerate(ious, start=1))]
    soft = [x.sigmoid() for x in (*sums[: len(shown)], sums[-1])]
    masks = _show_row(axes, soft, [*titles, f"after all {len(order)}"], image, box, "gray")
    third.colorbar(masks, ax=axes[-1], shrink=0.8)

    _title(fourth, "4. The mask is cropped to the box (with a margin of one cell) and thresholded")
    axes = fourth.subplots(1, 3)
    cropped = [soft[-1], soft[-1] * inside]
    _show_row(axes[:2], cropped, ["before the crop", "after the crop"], image, box, "gray")
    _show(axes[2], _tint(image, detection.pred_masks[0].numpy()), "above 0.5, in the image")
    _draw_box(axes[2], box)
    return figure


def _title(part: SubFigure, text: str) -> None:
    part.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left")


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=9, fontfamily=FONTS)
    axis.set_axis_off()


def _show_map(axis, values, image, title, cmap, low, high=None) -> AxesImage:
    """Show a map (h, w), stretched over the whole image that it belongs to."""
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    shown = axis.imshow(
        values, cmap=cmap, vmin=low, vmax=high, extent=extent, interpolation="nearest"
    )
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    return shown


def _show_row(axes, maps, titles, image, box, cmap) -> AxesImage:
    """Show maps (h, w) with the box: probabilities in gray, or logits in another colour map."""
    low, high = (0, 1) if cmap == "gray" else (-_MAX_LOGIT, _MAX_LOGIT)
    for axis, values, title in zip(axes, maps, titles):
        shown = _show_map(axis, values, image, title, cmap, low, high)
        _draw_box(axis, box)
    return shown


def _draw_box(axis: Axes, box: Sequence[float]) -> None:
    x1, y1, x2, y2 = box
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_BOX_COLOR, linewidth=1.5)
    )


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


def _tint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) in 0..1 with a coloured mask (H, W)."""
    tinted = image / 255
    tinted[mask] = 0.3 * tinted[mask] + 0.7 * np.array(to_rgb(_MASK_COLOR))
    return tinted


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", required=True, help="the image")
    parser.add_argument("--output", required=True, help="folder for the PNG files")
    parser.add_argument("--confidence-threshold", type=float, help="default: 0.3, or the config's")
    parser.add_argument("--top-k", type=int, default=3, help="draw the best K detections")
    parser.add_argument(
        "--detections", type=int, nargs="+", help="draw these detections instead; 0 is the best"
    )
    parser.add_argument("--steps", type=int, default=6, help="number of prototypes that are drawn")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def build_predictor(args: argparse.Namespace) -> Predictor:
    cfg = load_config(args.config_file, args.opts)
    if model_node(cfg) != "YOLACT":
        raise ValueError(f"{args.config_file}: only YOLACT has prototypes")
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a trained model, --opts MODEL.WEIGHTS FILE")
    threshold = drawing_threshold(cfg, args.confidence_threshold, default=0.3)
    return Predictor(cfg, confidence_threshold=threshold)


def choose_detections(args: argparse.Namespace, num_detections: int, threshold: float) -> list[int]:
    if args.detections is None:
        return list(range(min(args.top_k, num_detections)))
    missing = [i for i in args.detections if not 0 <= i < num_detections]
    if missing:
        raise ValueError(
            f"--detections: there is no {missing}; the image has {num_detections} detections with "
            f"a score of {threshold} or more, counted from 0"
        )
    return args.detections


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if min(args.top_k, args.steps) < 1:
        parser.error("--top-k and --steps must be 1 or more")
    try:
        image = read_image(args.input, format="BGR")
        os.makedirs(args.output, exist_ok=True)
        predictor = build_predictor(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    names = with_drawable_names(predictor.metadata).get("thing_classes")
    threshold = predictor.model.test_score_thresh
    parts = record_mask_parts(predictor, image)
    rgb = image[:, :, ::-1]
    stem = os.path.join(args.output, os.path.splitext(os.path.basename(args.input))[0])
    try:
        chosen = choose_detections(args, len(parts.instances), threshold)
        save_figure(prototype_sheet(rgb, parts.prototypes), f"{stem}_prototypes.png")
        for i in chosen:
            index = int(parts.instances.pred_classes[i])
            name = names[index] if names else f"class {index}"
            figure = detection_figure(rgb, parts, i, name, args.steps)
            save_figure(figure, f"{stem}_detection_{i}.png")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(
        f"{args.output}: the prototypes and {len(chosen)} of {len(parts.instances)} detections "
        f"with a score of {threshold} or more"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
