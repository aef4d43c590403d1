"""What is wrong with the box and the mask of one annotation: pure functions.

Faults are pairs (kind, detail), see :data:`KINDS`. Masks are never rasterised: an image that claims
to be huge costs nothing.
"""

from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from ..annotations import MIN_POLYGON_AREA, OUTSIDE_TOLERANCE, Size, clip_box, hull_area
from ..rle import read_runs, rle_size

Fault = tuple[str, str]

# By how much a side of a box may be away from the mask: in pixels, or as a part of the box's width
# or height, whichever is more. The boxes of COCO's crowd regions are one pixel short; boxes and
# masks that were drawn one after the other by hand differ by a few percent.
BOX_TOLERANCE = 2.0
RELATIVE_BOX_TOLERANCE = 0.05


def annotation_faults(annotation: dict[str, Any], size: Size | None) -> list[Fault]:
    """What is wrong with "bbox" and "segmentation".

    Args:
        annotation: of a COCO JSON.
        size: of its image. Without it, only what needs none is checked.
    """
    box = read_box(annotation.get("bbox"))
    if box is None:
        faults = [
            ("bad_record", f"'bbox' is {annotation.get('bbox')!r}, not [x, y, width, height]")
        ]
    else:
        faults = box_faults(box, size)
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return [*faults, ("no_mask", f"'segmentation' is {segmentation!r}")]
    if isinstance(segmentation, dict):
        mask_faults, extent = inspect_rle(segmentation, size)
    else:
        mask_faults, extent = inspect_polygons(segmentation, size)
    faults += mask_faults
    if box is not None and (box[2:] > box[:2]).all() and extent is not None:
        faults += mismatch(box, extent, size)
    return faults


def read_box(values: Any) -> np.ndarray | None:
    """[x, y, width, height] -> (4,) XYXY; None if it is not four finite numbers."""
    box = _numbers(values)
    if box is None or len(box) != 4:
        return None
    return np.concatenate([box[:2], box[:2] + box[2:]])


def box_faults(box: np.ndarray, size: Size | None) -> list[Fault]:
    """
    Args:
        box: (4,) XYXY.
    """
    if (box[2:] <= box[:2]).any():
        width, height = box[2:] - box[:2]
        return [("empty_box", f"the box is {width:g} x {height:g}")]
    return _outside(box, size, "box_outside", "the box")


def inspect_polygons(segmentation: Any, size: Size | None) -> tuple[list[Fault], np.ndarray | None]:
    """
    Returns:
        the faults, and the XYXY box (4,) around the sound polygons, if there are any.
    """
    if not isinstance(segmentation, list):
        return [("bad_polygon", f"'segmentation' is a {type(segmentation).__name__}")], None
    faults, sound = [], []
    for i, polygon in enumerate(segmentation):
        points = _numbers(polygon)
        if points is None or len(points) % 2:
            faults.append(("bad_polygon", f"polygon {i} is not a list of x, y, x, y, ..."))
        elif len(points) < 6:
            faults.append(("degenerate_polygon", f"polygon {i} has {len(points) // 2} points"))
        elif hull_area(points.reshape(-1, 2)) < MIN_POLYGON_AREA:
            faults.append(("degenerate_polygon", f"polygon {i} has no area"))
        else:
            sound.append(points.reshape(-1, 2))
    if not sound:
        return faults, None
    points = np.concatenate(sound)
    extent = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return faults + _outside(extent, size, "mask_outside", "the mask"), extent


def inspect_rle(rle: dict[str, Any], size: Size | None) -> tuple[list[Fault], np.ndarray | None]:
    """
    Returns:
        the faults, and the XYXY box (4,) around the mask, if it can be decoded.
    """
    try:
        claimed = rle_size(rle)
        if size is not None and claimed != tuple(size):
            detail = (
                f"the RLE is {claimed[0]} x {claimed[1]} (width x height), the image "
                f"{size[0]} x {size[1]}"
            )
            return [("rle_size", detail)], None
        runs = read_runs(rle)
    except ValueError as error:
        return [("bad_rle", str(error))], None
    if not runs[1::2].any():
        return [("no_mask", "the RLE is empty")], None
    rle = {"size": rle["size"], "counts": runs.tolist()}
    x, y, w, h = mask_util.toBbox(mask_util.frPyObjects(rle, *rle["size"]))
    return [], np.array([x, y, x + w, y + h])


def mismatch(box: np.ndarray, extent: np.ndarray, size: Size | None) -> list[Fault]:
    """Whether the box around a mask is another than its box, both as far as they are visible.

    Args:
        box, extent: (4,) XYXY.
    """
    visible = [_clip(b, size) for b in (box, extent)]
    sides = (visible[0][2:] - visible[0][:2]).clip(min=0)
    tolerance = np.tile(np.maximum(BOX_TOLERANCE, RELATIVE_BOX_TOLERANCE * sides), 2)
    if (np.abs(visible[0] - visible[1]) <= tolerance).all():
        return []
    return [
        ("mask_box_mismatch", f"the box is {_format(box)}, but around the mask {_format(extent)}")
    ]


def _clip(box: np.ndarray, size: Size | None) -> np.ndarray:
    return box if size is None else clip_box(box, size)


def _outside(box: np.ndarray, size: Size | None, kind: str, what: str) -> list[Fault]:
    if size is None or np.abs(box - _clip(box, size)).max() <= OUTSIDE_TOLERANCE:
        return []
    return [(kind, f"{what} is {_format(box)}, the image {size[0]} x {size[1]}")]


def _format(box: np.ndarray) -> str:
    x1, y1, x2, y2 = box
    return f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"


def _numbers(values: Any) -> np.ndarray | None:
    """A list of finite numbers as float64; None for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        return None
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        return None
    return array.astype(np.float64)
