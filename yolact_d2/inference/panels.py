"""Panels of figures that explain the masks of an image."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..files import atomic_write
from .labels import FONTS

TITLE_HEIGHT = 0.3  # inches
_BOX_COLOR = "#ff9f1c"
_MASK_COLOR = "#ff2d87"


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def set_title(part: SubFigure, text: str) -> None:
    """The title of a row of panels."""
    part.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left")


def show_image(axis: Axes, image: np.ndarray, title: str) -> None:
    """
    Args:
        image: (H, W, 3) RGB, uint8 or in 0..1.
    """
    axis.imshow(image)
    axis.set_title(title, fontsize=9, fontfamily=FONTS)
    axis.set_axis_off()


def show_map(
    axis: Axes,
    values,
    size: Sequence[float],
    title: str,
    cmap: str = "gray",
    low: float = 0,
    high: float | None = 1,
) -> AxesImage:
    """
    Args:
        values: (h, w), or (h, w, 3) RGB in 0..1.
        size: (height, width) that the map covers, in pixels of the image.
        low, high: values at the ends of the colour map.
    """
    height, width = size
    extent = (0, width, height, 0)
    shown = axis.imshow(
        values, cmap=cmap, vmin=low, vmax=high, extent=extent, interpolation="nearest"
    )
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    return shown


def draw_box(axis: Axes, box: Sequence[float]) -> None:
    """
    Args:
        box: XYXY, in pixels of the image.
    """
    x1, y1, x2, y2 = box
    axis.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_BOX_COLOR, linewidth=1.5)
    )


def tint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8, in 0..1 and with a coloured mask (H, W)."""
    tinted = image / 255
    tinted[mask] = 0.3 * tinted[mask] + 0.7 * np.array(to_rgb(_MASK_COLOR))
    return tinted
