"""Rules for the box, the mask and the area of one annotation."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Number
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from .issues import DROPPED, FATAL, NOTE, Issue, is_usable, raise_fatal

Annotation = dict[str, Any]
Size = tuple[int, int]  # width, height, in pixels
Box = tuple[float, float, float, float]  # XYXY; a tuple, because small arrays are slow

# How far a box or a mask may leave the image, in pixels. COCO's do by rounding errors, and tools
# that count the border pixel are off by one.
OUTSIDE_TOLERANCE = 1.0
# Polygons whose convex hull has a smaller area, in square pixels, have no area.
MIN_POLYGON_AREA = 0.1
# How many times larger or smaller than the mask "area" may be.
MAX_AREA_RATIO = 2.0
# How far a side of a box may be from the mask: in pixels, or as a part of the box's width or
# height, whichever is more. The boxes of COCO's crowd regions are one pixel short; boxes and masks
# drawn one after the other by hand differ by a few percent.
BOX_TOLERANCE = 2.0
RELATIVE_BOX_TOLERANCE = 0.05


def annotation_issues(annotation: Annotation, size: Size) -> list[Issue]:
    """
    Args:
        annotation: of a COCO JSON, or of a dataset dict of Detectron2 (with "bbox_mode").
        size: of its image.
    """
    wrong = _wrong_field(annotation)
    if wrong:
        return [Issue("bad_record", FATAL, wrong)]
    box, segmentation = xyxy(annotation), annotation.get("segmentation")
    issues = _box_issues(box, size)
    if segmentation is not None and not isinstance(segmentation, (list, dict)):
        detail = f"'segmentation' is a {type(segmentation).__name__}, not polygons or an RLE"
        return [*issues, Issue("bad_polygon", FATAL, detail)]
    if not segmentation:
        return [*issues, Issue("no_mask", FATAL, f"'segmentation' is {segmentation!r}")]
    mask_issues, extent = _inspect_mask(segmentation, size)
    issues += mask_issues
    if extent is not None and is_usable(issues):
        issues += _mismatch(box, extent, size)
    return issues


def evaluation_issues(annotation: Annotation, size: Size) -> list[Issue]:
    """What is wrong with the fields of a COCO JSON that only COCO's evaluation uses.

    Args:
        annotation: with a valid mask.
        size: of its image.
    """
    issues = []
    area = annotation.get("area")
    if "area" in annotation and not is_area(area):
        detail = f"'area' is {area!r}, not a positive number; that of the mask is used"
        issues.append(Issue("bad_area", NOTE, detail))
    elif area is not None and not _is_plausible(area, annotation["segmentation"], size):
        actual = mask_area(annotation["segmentation"], size)
        detail = f"'area' is {area:g}, but the mask has {actual:g} pixels; {area:g} is used"
        issues.append(Issue("wrong_area", NOTE, detail))
    if annotation.get("id") == 0:
        detail = "COCO's evaluation counts the object with the annotation id 0 as missed"
        issues.append(Issue("annotation_id_0", NOTE, detail))
    return issues


def is_area(value: Any) -> bool:
    """Whether a value is a positive number of pixels that is not beyond all images."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < 1e12


def mask_extent(annotation: Annotation, size: Size) -> Box | None:
    """The box around a mask; None if there is no mask, or a faulty one."""
    segmentation = annotation.get("segmentation")
    if not segmentation or not isinstance(segmentation, (list, dict)):
        return None
    return _inspect_mask(segmentation, size)[1]


def mask_area(segmentation: Any, size: Size) -> float:
    """The number of pixels of polygons or an RLE."""
    width, height = size
    if isinstance(segmentation, list):
        polygons = valid_polygons(segmentation)
        if not polygons:
            return 0.0
        segmentation = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return float(mask_util.area(segmentation))


def _is_plausible(area: float, segmentation: Any, size: Size) -> bool:
    """Whether an area is that of a mask, within a factor of MAX_AREA_RATIO."""

    def agrees(actual: float) -> bool:
        return actual / MAX_AREA_RATIO <= area <= actual * MAX_AREA_RATIO

    # Polygons that overlap, cross themselves or are tiny differ from their pixels.
    if isinstance(segmentation, list):
        points = (np.reshape(p, (-1, 2)).T for p in valid_polygons(segmentation))
        if agrees(sum(_shoelace(x, y) for x, y in points)):
            return True
    return agrees(mask_area(segmentation, size))


def is_usable_annotation(annotation: Annotation, size: Size) -> bool:
    """Whether an annotation is kept, see :func:`annotation_issues`.

    Raises:
        ValueError: if it has a fatal issue.
    """
    issues = annotation_issues(annotation, size)
    raise_fatal(issues, "an annotation")
    return is_usable(issues)


def xyxy(annotation: Annotation) -> Box:
    """The box; without "bbox_mode" it is [x, y, width, height], as in a COCO JSON."""
    x, y, a, b = annotation["bbox"]
    if annotation.get("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYWH_ABS:
        return x, y, x + a, y + b
    return x, y, a, b


def clip_box(box: np.ndarray, size: Size) -> np.ndarray:
    """The part of boxes, (..., 4) XYXY, that is inside the image."""
    return box.clip(0, (*size, *size))


def leaves_image(points: np.ndarray, size: Size) -> bool:
    """Whether any of the points (P, 2) is farther outside the image than OUTSIDE_TOLERANCE."""
    return bool((np.abs(points - points.clip(0, size)) > OUTSIDE_TOLERANCE).any())


def valid_polygons(segmentation: Iterable[Sequence[float]]) -> list[Sequence[float]]:
    """The polygons of 3 or more points, the only ones that Detectron2 reads from a COCO JSON."""
    return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def decode_runs(rle: dict[str, Any]) -> np.ndarray:
    """The lengths of the runs of background, mask, background, ..., (R,) int64.

    Raises:
        ValueError: if they do not cover the size. (pycocotools does not notice.)
    """
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        runs = _decompress(counts.encode() if isinstance(counts, str) else counts)
    elif isinstance(counts, list) and all(map(is_whole, counts)):
        runs = np.array(counts, dtype=np.int64)
    else:
        raise ValueError("'counts' is neither a string nor a list of lengths")
    height, width = rle["size"]
    if (runs < 0).any():
        raise ValueError("a run is negative")
    if runs.sum() != width * height:
        raise ValueError(f"its runs cover {runs.sum()} of {width * height} pixels")
    return runs


def _decompress(counts: bytes) -> np.ndarray:
    """COCO's compression: each character has 5 bits of a number, lowest first, and a bit that says
    whether more follow. From the fourth on, numbers are differences from the number two before."""
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero((bits & 32) == 0)
    if len(ends) == 0 or ends[-1] != len(bits) - 1:
        raise ValueError("'counts' ends within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, 1 << 5 * lengths, 0)  # the sign
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _numbers(values: Any) -> np.ndarray | None:
    """A sequence of finite numbers as an array (N,); None for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # nested lists of different lengths
        return None
    valid = array.ndim == 1 and array.dtype.kind in "iuf" and math.isfinite(array.sum())
    return array if valid else None


def _wrong_field(annotation: Annotation) -> str | None:
    category, crowd = annotation.get("category_id"), annotation.get("iscrowd", 0)
    box = _numbers(annotation.get("bbox"))
    if box is None or len(box) != 4:
        return f"'bbox' is {annotation.get('bbox')!r}, not four finite numbers"
    if not is_whole(category):
        return f"'category_id' is {category!r}, not a whole number"
    if not isinstance(crowd, (Number, np.bool_)) or crowd not in (0, 1):
        return f"'iscrowd' is {crowd!r}, not 0 or 1"
    if annotation.get("ignore"):
        return "'ignore' is set, which Detectron2 does not support"
    return None


def _box_issues(box: Box, size: Size) -> list[Issue]:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return [Issue("empty_box", DROPPED, f"the box is {x2 - x1:g} x {y2 - y1:g}")]
    return _outside_issues("box", box, size)


def _outside_issues(name: str, box: Box, size: Size) -> list[Issue]:
    (x1, y1, x2, y2), (width, height) = box, size
    is_outside = x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height
    if not is_outside and min(x1, y1, width - x2, height - y2) >= -OUTSIDE_TOLERANCE:
        return []
    # Rasterising a mask that reaches far outside could take any amount of memory.
    is_far = name == "mask" and (x1 < -width or y1 < -height or x2 > 2 * width or y2 > 2 * height)
    detail = f"the {name} is {_format(box)}, the image is {width} x {height}"
    return [Issue(f"{name}_outside", DROPPED if is_outside or is_far else NOTE, detail)]


def _inspect_mask(segmentation: list | dict, size: Size) -> tuple[list[Issue], Box | None]:
    """The issues, and the box around the mask if it has an area."""
    if isinstance(segmentation, dict):
        return _inspect_rle(segmentation, size)
    return _inspect_polygons(segmentation, size)


def _inspect_polygons(segmentation: list[Any], size: Size) -> tuple[list[Issue], Box | None]:
    faults, sound = [], []
    for i, polygon in enumerate(segmentation):
        points = _numbers(polygon)
        if points is None:
            detail = f"polygon {i} is not a list of finite numbers x, y, x, y, ..."
            return [Issue("bad_polygon", FATAL, detail)], None
        if len(points) % 2:
            faults.append(("bad_polygon", f"polygon {i} has an odd number of coordinates"))
        elif len(points) < 6:
            faults.append(("degenerate_polygon", f"polygon {i} has {len(points) // 2} points"))
        elif not _has_area(points.reshape(-1, 2)):
            faults.append(("degenerate_polygon", f"polygon {i} has no area"))
        else:
            sound.append(points.reshape(-1, 2))
    issues = [Issue(kind, NOTE if sound else DROPPED, detail) for kind, detail in faults]
    if not sound:
        return issues, None
    points = np.concatenate(sound)
    extent = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    return issues + _outside_issues("mask", extent, size), extent


def _inspect_rle(rle: dict[str, Any], size: Size) -> tuple[list[Issue], Box | None]:
    shape = rle.get("size")
    if not isinstance(shape, (list, tuple)) or len(shape) != 2 or not all(map(is_whole, shape)):
        return [Issue("bad_rle", FATAL, f"'size' of the RLE is {shape!r}")], None
    height, width = shape
    if (width, height) != tuple(size):
        detail = f"the RLE is {width} x {height}, the image is {size[0]} x {size[1]}"
        return [Issue("rle_size", FATAL, detail)], None
    try:
        runs = decode_runs(rle)
    except ValueError as error:
        return [Issue("bad_rle", FATAL, f"the RLE cannot be decoded: {error}")], None
    if not runs[1::2].any():
        return [Issue("no_mask", DROPPED, "the RLE is empty")], None
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, height, width)
    x, y, w, h = mask_util.toBbox(rle)
    return [], (x, y, x + w, y + h)


def _shoelace(x: np.ndarray, y: np.ndarray) -> float:
    """The area of a polygon that does not cross itself."""
    x, y = x - x[0], y - y[0]
    return abs(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def _has_area(points: np.ndarray) -> bool:
    if _shoelace(*points.T) >= MIN_POLYGON_AREA:
        return True
    # The parts of a polygon that crosses itself may cancel out.
    hull = cv2.convexHull((points - points[0]).astype(np.float32))
    return cv2.contourArea(hull) >= MIN_POLYGON_AREA


def _mismatch(box: Box, extent: Box, size: Size) -> list[Issue]:
    """Compare the visible parts of a box and of the box around its mask."""
    sides = (*size, *size)
    visible = [min(max(value, 0), side) for value, side in zip(box, sides)]
    others = [min(max(value, 0), side) for value, side in zip(extent, sides)]
    width, height = visible[2] - visible[0], visible[3] - visible[1]
    tolerances = [max(BOX_TOLERANCE, RELATIVE_BOX_TOLERANCE * side) for side in (width, height)]
    if all(abs(a - b) <= limit for a, b, limit in zip(visible, others, tolerances * 2)):
        return []
    detail = f"the box is {_format(box)}, but around the mask it is {_format(extent)}"
    return [Issue("mask_box_mismatch", NOTE, detail)]


def _format(box: Box) -> str:
    x1, y1, x2, y2 = box
    return f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
