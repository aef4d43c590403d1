"""Class names on drawings, in any writing system."""

import functools
import logging
import os

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import VisImage
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.ft2font import FT2Font

# The fonts of labels: for a character that the first lacks, matplotlib takes the next.
FONTS = ["sans-serif"]


@functools.cache
def drawable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names as matplotlib can write them with FONTS.

    Fonts of the system that have characters which FONTS lack are added to FONTS. If there are none,
    the number of the class, from 0, replaces its name, and one warning names these classes.
    """
    wanted = {char for name in names for char in str(name) if char.isprintable()}
    default = font_manager.findfont(font_manager.FontProperties(family=FONTS[:1]))
    missing = wanted - _characters(default)
    if missing:
        found = {path: _characters(path) & missing for path in font_manager.findSystemFonts()}
        for path in sorted(found, key=lambda p: (-len(found[p]), "Regular" not in p, p)):
            if found[path] & missing:
                font_manager.fontManager.addfont(path)
                FONTS.append(FT2Font(path).family_name)
                missing -= found[path]
    drawable = [
        str(i) if missing.intersection(str(name)) else str(name) for i, name in enumerate(names)
    ]
    if missing:
        replaced = [name for name in names if missing.intersection(str(name))]
        logging.getLogger(__name__).warning(
            "No font of this system has the characters of the class names %s: drawings show the "
            "numbers of these classes, from 0. Install a font that has them.",
            ", ".join(replaced),
        )
    return tuple(drawable)


def _characters(path: str) -> set[str]:
    """The characters that matplotlib can draw from a font file."""
    if "LastResort" in os.path.basename(path):  # which has boxes for all characters
        return set()
    try:
        font = FT2Font(path)
        return {chr(code) for code in font.get_charmap()} if font.scalable else set()
    except (OSError, RuntimeError):  # of a format that matplotlib cannot read
        return set()


def with_drawable_names(metadata: Metadata) -> Metadata:
    """A copy of metadata with :func:`drawable_names`, for Detectron2's visualizers."""
    names = metadata.get("thing_classes")
    if not names:
        return metadata
    # A "$" would begin a formula.
    names = [name.replace("$", r"\$") for name in drawable_names(tuple(names))]
    return Metadata(**{**metadata.as_dict(), "thing_classes": names})


def get_image(drawing: VisImage) -> np.ndarray:
    """The image of a drawing, (H, W, 3) uint8, RGB, with its labels in FONTS."""
    for text in drawing.ax.texts:
        text.set_fontfamily(FONTS)
    return drawing.get_image()


@functools.lru_cache(maxsize=4096)
def text_coverage(text: str, size: int) -> np.ndarray:
    """Text in FONTS, in one line: how much of each pixel it covers, (h, w) float32 in 0..1.

    Args:
        size: in points at 100 per inch; it alone decides h.
    """
    font = font_manager.FontProperties(family=FONTS, size=size)
    pixels = size * 100 / 72
    width, *_ = RendererAgg(1, 1, 100).get_text_width_height_descent(text, font, ismath=False)
    renderer = RendererAgg(int(width) + 4, round(1.4 * pixels), 100)
    renderer.draw_text(renderer.new_gc(), 2, round(1.05 * pixels), text, font, 0)
    return np.asarray(renderer.buffer_rgba())[:, :, 3] / np.float32(255)
