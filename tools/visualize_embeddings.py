#!/usr/bin/env python3
"""Draw how EmbedMask makes the masks of an image, as PNG files.

For the image NAME.jpg, NAME_embeddings.png shows the embeddings of its pixels, and
NAME_detection_0.png, ... show the probability of each pixel to belong to a detection.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from yolact_d2 import Predictor
from yolact_d2.inference.inputs import AnyImage
from yolact_d2.inference.mask_program import build_parser, draw_figures
from yolact_d2.inference.panels import TITLE_HEIGHT, draw_box, show_image, show_map, tint
from yolact_d2.modeling.embedmask.head import NUM_SPATIAL
from yolact_d2.modeling.embedmask.losses import log_probability
from yolact_d2.modeling.embedmask.masks import STRIDE

# Part of the pixels that are darker or brighter than the colours can show, at either end.
_CLIPPED = 0.02


class MaskParts(NamedTuple):
    """What the masks of an image are made of, for N detections, the best first."""

    pixels: Tensor
    """(D, h, w) p, a cell for 4 x 4 pixels of the network input, without its padding."""
    embeddings: Tensor
    """(N, D) q"""
    margins: Tensor
    """(N, D) m"""
    map_size: tuple[float, float]
    """(height, width) that `pixels` covers, in pixels of the image."""
    threshold: float
    """Probability above which a pixel belongs to a mask."""
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
    model, calls = predictor.model, []

    def infer(*args):
        calls.append(args)
        return type(model).inference_single_image(model, *args)

    model.inference_single_image = infer  # type: ignore[method-assign]
    try:
        instances = predictor(image)
    finally:
        del model.inference_single_image

    locations, predictions, input_size, output_size = calls[0]
    _, _, classes, location = model.detect(locations, predictions, input_size)
    location = location[predictor.kept(classes)]
    cells = [-(-length // STRIDE) for length in input_size]
    return MaskParts(
        predictions.pixels[:, : cells[0], : cells[1]].cpu(),
        predictions.embeddings[location].cpu(),
        predictions.margins[location].cpu(),
        (
            cells[0] * STRIDE * output_size[0] / input_size[0],
            cells[1] * STRIDE * output_size[1] / input_size[1],
        ),
        model.test_mask_thresh,
        instances,
    )


def principal_components(values: Tensor, num: int = 3) -> Tensor:
    """Project on the directions of the largest variance.

    Args:
        values: (D, ...), of D dimensions.
        num: of directions.

    Returns:
        (num, ...), the largest variance first, 0 beyond D. The largest coefficient of each
        direction is positive.
    """
    flat = values.flatten(1).double()
    flat = flat - flat.mean(dim=1, keepdim=True)
    flat = F.pad(flat, (0, 0, 0, max(num - len(flat), 0)))
    _, directions = torch.linalg.eigh(flat @ flat.t())
    directions = directions[:, -num:].flip(1)
    largest = directions.abs().argmax(dim=0, keepdim=True)
    directions = directions * directions.gather(0, largest).sign()
    return (directions.t() @ flat).view(num, *values.shape[1:]).to(values.dtype)


def to_colors(components: Tensor) -> np.ndarray:
    """Three maps (3, h, w) as RGB (h, w, 3) in 0..1, each from its least to its largest value but
    for a few extremes."""
    low, high = components.flatten(1).quantile(
        torch.tensor([_CLIPPED, 1 - _CLIPPED], dtype=components.dtype), dim=1
    )[:, :, None, None]
    colors = (components - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
    return colors.clamp(0, 1).permute(1, 2, 0).numpy()


def probabilities(parts: MaskParts, index: int, dimensions: slice) -> Tensor:
    """(h, w) probability of each pixel to belong to a detection, by some of the dimensions."""
    log = log_probability(
        parts.pixels[dimensions],
        parts.embeddings[index, None, dimensions],
        parts.margins[index, None, dimensions],
    )
    return log[0].exp()


def embedding_sheet(image: np.ndarray, parts: MaskParts) -> Figure:
    """An image and the principal components of the embeddings of its pixels.

    Args:
        image: (H, W, 3) uint8, RGB.
        parts: of this image.
    """
    num = len(parts.pixels)
    figure = _figure(image, 3)
    figure.suptitle("Pixel embeddings: three principal components as red, green and blue")
    axes = figure.subplots(1, 3)
    show_image(axes[0], image, "image")
    maps = {
        f"all {num} dimensions": parts.pixels,
        f"the {num - NUM_SPATIAL} dimensions without position": parts.pixels[NUM_SPATIAL:],
    }
    for axis, (title, values) in zip(axes[1:], maps.items()):
        show_map(axis, to_colors(principal_components(values)), parts.map_size, title)
        _cut_to_image(axis, image)
    return figure


def detection_figure(image: np.ndarray, parts: MaskParts, index: int, class_name: str) -> Figure:
    """How the mask of a detection is made: the probability of each pixel by its position, by the
    other dimensions, and by all; and the mask.

    Args:
        image: (H, W, 3) uint8, RGB.
        parts: of this image.
        index: of the detection in `parts`.
        class_name: of the detection, see :func:`drawable_names`.
    """
    detection = parts.instances[index]
    box = detection.pred_boxes.tensor[0].tolist()
    figure = _figure(image, 5)
    figure.suptitle("Probability of each pixel to belong to the detection: exp(-sum of m (p - q)²)")
    axes = figure.subplots(1, 5)
    show_image(axes[0], image, f"{class_name}, score {float(detection.scores[0]):.2f}")
    maps = {
        "by position": slice(NUM_SPATIAL),
        "by the other dimensions": slice(NUM_SPATIAL, None),
        "product": slice(None),
    }
    for axis, (title, dimensions) in zip(axes[1:], maps.items()):
        shown = show_map(axis, probabilities(parts, index, dimensions), parts.map_size, title)
        _cut_to_image(axis, image)
    figure.colorbar(shown, ax=axes[3], shrink=0.8)
    mask = tint(image, detection.pred_masks[0].numpy())
    show_image(axes[4], mask, f"above {parts.threshold:g} near the box")
    for axis in axes:
        draw_box(axis, box)
    return figure


def _figure(image: np.ndarray, num_panels: int) -> Figure:
    """An empty figure for panels in a row."""
    height = 2.6 * image.shape[0] / image.shape[1] + 3 * TITLE_HEIGHT
    return Figure(figsize=(2.6 * num_panels, height), layout="constrained")


def _cut_to_image(axis: Axes, image: np.ndarray) -> None:
    """Hide what a map shows beyond the image, whose last row or column of cells may be cut."""
    height, width = image.shape[:2]
    axis.set(xlim=(0, width), ylim=(height, 0))


def main() -> int:
    parser = build_parser(__doc__)
    args = parser.parse_args()
    try:
        draw_figures(
            args,
            node="EMBEDMASK",
            name="embeddings",
            record=record_mask_parts,
            draw_image=embedding_sheet,
            draw_detection=detection_figure,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
