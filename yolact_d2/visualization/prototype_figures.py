"""Figures of how masks come about. Nothing here needs a display."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..modeling.masks import inside_boxes
from .prototypes import MaskParts, agreement, build_up, strongest_first

_BOX_COLOR = "#ff9f1c"
_MASK_COLOR = "#ff2d87"
_POSITIVE, _NEGATIVE, _WEAK = "#c0392b", "#2c6fbb", "#c9ced6"  # as in the colour map RdBu_r
# Logits are shown up to here, where a mask is certain: the sigmoid of 6 is 0.998.
_LOGIT_LIMIT = 6.0
_SHEET_ROWS = 4
_TITLE_HEIGHT = 0.3  # inches


def prototype_sheet(image: np.ndarray, prototypes: Tensor) -> Figure:
    """The picture, and beside it its prototypes.

    Args:
        image: (H, W, 3) uint8, RGB.
        prototypes: (k, h, w).
    """
    aspect = image.shape[0] / image.shape[1]
    columns = math.ceil(len(prototypes) / _SHEET_ROWS)
    rows = math.ceil(len(prototypes) / columns)
    # The picture is two tiles wide and high.
    figure = Figure(
        figsize=(1.6 * (columns + 2), max(rows, 2) * (1.6 * aspect + _TITLE_HEIGHT)),
        layout="constrained",
    )
    grid = figure.add_gridspec(max(rows, 2), columns + 2)
    _show(figure.add_subplot(grid[:2, :2]), image, "picture")
    if rows > 2:
        note = figure.add_subplot(grid[2:, :2])
        note.set_axis_off()
        note.text(
            0.5,
            0.9,
            f"its {len(prototypes)} prototypes,\neach from 0 (dark)\nto its maximum (bright)",
            ha="center",
            va="top",
            fontsize=10,
        )
    for i, prototype in enumerate(prototypes):
        axis = figure.add_subplot(grid[i // columns, 2 + i % columns])
        title = f"{i}   (max {prototype.max():.2g})"
        _show_map(axis, prototype, image, title, "viridis", 0)
    return figure


def detection_figure(
    image: np.ndarray, parts: MaskParts, index: int, class_name: str, num_steps: int = 6
) -> Figure:
    """How the mask of one detection comes about, from top to bottom.

    The detection and its coefficients; what each of the strongest prototypes adds; the mask as
    it builds up; the mask before and after the crop, and in the picture.

    Args:
        image: (H, W, 3) uint8, RGB.
        parts: of this picture.
        index: which of its detections.
        class_name: of that detection.
        num_steps: how many of the strongest prototypes are shown one by one.

    Raises:
        ValueError: if the box of the detection has no cell inside the picture.
    """
    prototypes, coefficients = parts.prototypes, parts.coefficients[index]
    inside = inside_boxes(parts.boxes[index : index + 1], *prototypes.shape[1:])[0]
    if not inside.any():
        raise ValueError(f"detection {index} lies outside the picture")
    order = strongest_first(prototypes, coefficients, inside)
    partial = build_up(prototypes, coefficients, order)
    shown = order[:num_steps].tolist()
    detection = parts.instances[index]
    box = detection.pred_boxes.tensor[0].tolist()

    tile_height = 2 * image.shape[0] / image.shape[1]
    heights = [2.2, *[tile_height + 2 * _TITLE_HEIGHT] * 2, 1.6 * tile_height + 2 * _TITLE_HEIGHT]
    columns = len(shown) + 1
    figure = Figure(figsize=(2 * columns + 0.6, sum(heights)), layout="constrained")
    top, middle, lower, bottom = figure.subfigures(4, 1, height_ratios=heights)

    _title(top, "1. A detection has a class, a score, a box and a coefficient for each prototype")
    left, right = top.subplots(1, 2, width_ratios=[1, columns - 1])
    _show(left, image, f"{class_name}, score {float(detection.scores[0]):.2f}")
    _draw_box(left, box)
    _draw_coefficients(right, coefficients, shown)

    _title(middle, "2. What the strongest prototypes add to the logits of its mask")
    axes = middle.subplots(1, columns, squeeze=False)[0]
    titles = [f"{coefficients[i]:+.2f} x prototype {i}" for i in shown]
    terms = [coefficients[i] * prototypes[i] for i in shown]
    logits = _row(axes, [*terms, partial[-1]], [*titles, "sum of all"], image, box, "RdBu_r")
    middle.colorbar(logits, ax=axes[-1], shrink=0.8, extend="both")

    _title(
        lower,
        "3. The mask builds up: sigmoid of the sum so far, and IoU with the final mask in the box",
    )
    axes = lower.subplots(1, columns, squeeze=False)[0]
    similarity = agreement(partial, inside)[: len(shown)]
    titles = [f"after {n}: IoU {iou:.2f}" for n, iou in enumerate(similarity, start=1)]
    soft = [logits.sigmoid() for logits in (*partial[: len(shown)], partial[-1])]
    titles = [*titles, f"after all {len(order)}"]
    probabilities = _row(axes, soft, titles, image, box, "gray")
    lower.colorbar(probabilities, ax=axes[-1], shrink=0.8)

    _title(bottom, "4. The mask is cut off at the box (and a margin of one cell), and thresholded")
    axes = bottom.subplots(1, 3)
    cropped = [soft[-1], soft[-1] * inside]
    _row(axes[:2], cropped, ["before the crop", "after the crop"], image, box, "gray")
    _show(axes[2], _tint(image, detection.pred_masks[0].numpy()), "above 0.5, in the picture")
    _draw_box(axes[2], box)
    return figure


def _title(part: SubFigure, text: str) -> None:
    part.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left")


def _row(axes, maps, titles, image, box, cmap):
    """A row of maps (h, w) with the box: logits in RdBu_r, or probabilities in gray."""
    low, high = (0, 1) if cmap == "gray" else (-_LOGIT_LIMIT, _LOGIT_LIMIT)
    for axis, values, title in zip(axes, maps, titles):
        shown = _show_map(axis, values, image, title, cmap, low, high)
        _draw_box(axis, box)
    return shown


def _draw_coefficients(axis: Axes, coefficients: Tensor, shown: Sequence[int]) -> None:
    """Bars, of which those in `shown` are coloured by their sign."""
    colors = [
        _WEAK if i not in shown else _POSITIVE if c > 0 else _NEGATIVE
        for i, c in enumerate(coefficients.tolist())
    ]
    axis.bar(range(len(coefficients)), coefficients, color=colors)
    for rank, i in enumerate(shown, start=1):
        value = float(coefficients[i])
        axis.annotate(
            str(rank),
            (i, value),
            xytext=(0, -3 if value > 0 else 3),
            textcoords="offset points",
            ha="center",
            va="top" if value > 0 else "bottom",
            color="white",
            fontsize=8,
            fontweight="bold",
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylim(-1.05, 1.05)
    axis.set_xlim(-0.6, len(coefficients) - 0.4)
    axis.set_xticks(range(len(coefficients)))
    axis.tick_params(labelsize=7)
    axis.set_title(
        "its coefficients; coloured, in order: |coefficient| x energy of the prototype in the box",
        fontsize=9,
    )
    axis.set_xlabel("prototype", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _show_map(axis, values, image, title, cmap, low, high=None):
    """Show a map (h, w) over the whole of the picture that it belongs to."""
    height, width = image.shape[:2]
    shown = axis.imshow(
        values,
        cmap=cmap,
        vmin=low,
        vmax=high,
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    return shown


def _draw_box(axis: Axes, box: Sequence[float]) -> None:
    x1, y1, x2, y2 = box
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_BOX_COLOR, linewidth=1.5)
    )


def _tint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) in 0..1, with the mask (H, W) in colour."""
    tinted = image / 255
    tinted[mask] = 0.3 * tinted[mask] + 0.7 * np.array(to_rgb(_MASK_COLOR))
    return tinted
