"""Why the boxes of a dataset disagree with its masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .annotations import BOX_TOLERANCE, RELATIVE_BOX_TOLERANCE, Annotation, Size, mask_extent

XYWH = "[x, y, width, height]"
XYXY = "[x1, y1, x2, y2]"
# Box layouts, and how to turn each into XYXY.
_LAYOUTS = {
    XYWH: lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1),
    XYXY: lambda b: b,
    "[center x, center y, width, height]": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1
    ),
}
# A layout is likely if more than this fraction of the boxes then fit their masks.
_LIKELY = 0.5


def likely_cause(annotations: Sequence[tuple[Annotation, Size]]) -> str | None:
    """Why most boxes of a dataset do not fit their masks.

    Args:
        annotations: usable or not, each with the size of its image.

    Returns:
        a phrase such as "the boxes seem to be [x1, y1, x2, y2]"; None if no layout makes most boxes
        fit, or if they fit as they are.
    """
    known = [(a, size, mask_extent(a, size)) for a, size in annotations]
    known = [(a, size, extent) for a, size, extent in known if extent is not None]
    if not known:
        return None
    boxes = np.array([a["bbox"] for a, _, _ in known], float)
    sides = np.array([(*size, *size) for _, size, _ in known], float)
    if np.max([extent for _, _, extent in known]) <= 1 < boxes.max():
        return "the masks seem to be divided by the size of the image"
    extents = np.clip([extent for _, _, extent in known], 0, sides)
    tolerance = np.maximum(BOX_TOLERANCE, RELATIVE_BOX_TOLERANCE * _sizes(extents))
    mode = known[0][0].get("bbox_mode", BoxMode.XYWH_ABS)
    stated = XYXY if mode == BoxMode.XYXY_ABS else XYWH

    scores: dict[str, float] = {}
    for layout, to_corners in _LAYOUTS.items():
        scale = np.median(extents[:, 2:] / to_corners(boxes)[:, 2:].clip(1e-9))
        for change, changed in {
            "": boxes,
            " divided by the size of the image": boxes * sides,
            " in percent of the size of the image": boxes * sides / 100,
            " in thousandths of the size of the image": boxes * sides / 1000,
            f" of images of another size, {1 / scale:.3g} times as large": boxes * scale,
            " with x and y exchanged": boxes[:, [1, 0, 3, 2]],
        }.items():
            fits = np.abs(to_corners(changed).clip(0, sides) - extents) <= tolerance
            scores.setdefault(layout + change, fits.all(axis=1).mean())
    best = max(scores, key=scores.__getitem__)
    if scores[best] <= max(_LIKELY, scores[stated]):
        return None
    return f"the boxes seem to be {best}"


def _sizes(boxes: np.ndarray) -> Any:
    """Width, height, width, height of boxes (N, 4) XYXY."""
    return np.tile(boxes[:, 2:] - boxes[:, :2], 2)
