"""What is wrong with the box and the mask of one annotation: pure functions.

Faults are pairs (kind, detail), see :data:`KINDS`. Masks are never rasterised: an image that claims
to be huge costs nothing.
"""

from typing import Any, Dict, List, Optional, Tuple

import cv2
import numpy as np
from pycocotools import mask as mask_util

Fault = Tuple[str, str]
Size = Tuple[int, int]  # width, height, in pixels

# By how much a box or a mask may leave the picture, in pixels. COCO's do by rounding errors, and
# tools that count the border pixel in are off by one.
OUTSIDE_TOLERANCE = 1.0
# By how much a side of a box may be away from the mask: in pixels, or as a part of the box's width
# or height, whichever is more. The boxes of COCO's crowd regions are one pixel short; boxes and
# masks that were drawn one after the other by hand differ by a few percent.
BOX_TOLERANCE = 2.0
RELATIVE_BOX_TOLERANCE = 0.05
# Polygons whose convex hull has less area than this, in square pixels, have none: a hair's breadth
# more than float32 can tell from zero.
MIN_POLYGON_AREA = 0.1


def annotation_faults(annotation: Dict[str, Any], size: Optional[Size]) -> List[Fault]:
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


def read_box(values: Any) -> Optional[np.ndarray]:
    """[x, y, width, height] -> (4,) XYXY; None if it is not four finite numbers."""
    box = _numbers(values)
    if box is None or len(box) != 4:
        return None
    return np.concatenate([box[:2], box[:2] + box[2:]])


def box_faults(box: np.ndarray, size: Optional[Size]) -> List[Fault]:
    """
    Args:
        box: (4,) XYXY.
    """
    if (box[2:] <= box[:2]).any():
        width, height = box[2:] - box[:2]
        return [("empty_box", f"the box is {width:g} x {height:g}")]
    return _outside(box, size, "box_outside", "the box")


def inspect_polygons(
    segmentation: Any, size: Optional[Size]
) -> Tuple[List[Fault], Optional[np.ndarray]]:
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
        elif _hull_area(points.reshape(-1, 2)) < MIN_POLYGON_AREA:
            faults.append(("degenerate_polygon", f"polygon {i} has no area"))
        else:
            sound.append(points.reshape(-1, 2))
    if not sound:
        return faults, None
    points = np.concatenate(sound)
    extent = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return faults + _outside(extent, size, "mask_outside", "the mask"), extent


def inspect_rle(
    rle: Dict[str, Any], size: Optional[Size]
) -> Tuple[List[Fault], Optional[np.ndarray]]:
    """
    Returns:
        the faults, and the XYXY box (4,) around the mask, if it can be decoded.
    """
    rle_size, counts = rle.get("size"), rle.get("counts")
    if not (
        isinstance(rle_size, list) and len(rle_size) == 2 and all(type(x) is int for x in rle_size)
    ):
        return [("bad_rle", f"'size' is {rle_size!r}, not [height, width]")], None
    height, width = rle_size
    if size is not None and (width, height) != tuple(size):
        detail = f"the RLE is {width} x {height} (width x height), the image {size[0]} x {size[1]}"
        return [("rle_size", detail)], None
    if not 0 < height * width < 2**32:  # what pycocotools can hold
        return [("bad_rle", f"the RLE is {width} x {height} (width x height)")], None
    try:
        runs = decode_runs(counts) if isinstance(counts, str) else counts
        if not (isinstance(runs, list) and all(type(x) is int and x >= 0 for x in runs)):
            raise ValueError("'counts' is neither a string nor a list of lengths")
        if sum(runs) != height * width:
            raise ValueError(f"its runs cover {sum(runs)} of {height * width} pixels")
    except ValueError as error:
        return [("bad_rle", str(error))], None
    if not any(runs[1::2]):
        return [("no_mask", "the RLE is empty")], None
    x, y, w, h = mask_util.toBbox(mask_util.frPyObjects({**rle, "counts": runs}, height, width))
    return [], np.array([x, y, x + w, y + h])


def decode_runs(counts: str) -> List[int]:
    """The lengths of the runs that a compressed RLE of COCO stands for.

    A number is a sequence of characters of six bits each, above "0", the least significant first:
    five of the number and one that says whether more follow; the highest bit of the last is the
    sign. From the fourth on, numbers are differences to the last but one. (pycocotools decodes it,
    but does not say when the runs cover too little.)

    Raises:
        ValueError: if it ends within a number, or has other characters.
    """
    runs, number, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64:
            raise ValueError(f"'counts' has the character {character!r}")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number, shift = 0, 0
    if shift:
        raise ValueError("'counts' ends within a number")
    return runs


def mismatch(box: np.ndarray, extent: np.ndarray, size: Optional[Size]) -> List[Fault]:
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


def _clip(box: np.ndarray, size: Optional[Size]) -> np.ndarray:
    return box if size is None else box.clip(0, np.tile(size, 2))


def _outside(box: np.ndarray, size: Optional[Size], kind: str, what: str) -> List[Fault]:
    if size is None or np.abs(box - _clip(box, size)).max() <= OUTSIDE_TOLERANCE:
        return []
    return [(kind, f"{what} is {_format(box)}, the image {size[0]} x {size[1]}")]


def _format(box: np.ndarray) -> str:
    x1, y1, x2, y2 = box
    return f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"


def _numbers(values: Any) -> Optional[np.ndarray]:
    """A list of finite numbers as float64; None for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        return None
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        return None
    return array.astype(np.float64)


def _hull_area(points: np.ndarray) -> float:
    """Of the convex hull: what a polygon that crosses itself adds up to may be nothing."""
    return cv2.contourArea(cv2.convexHull((points - points.min(axis=0)).astype(np.float32)))
