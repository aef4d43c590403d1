"""Which annotations are refused, which are left out, and what of the others is used.

The rules are the same in training, for dataset dicts of Detectron2, and in evaluation, for the
annotations of a COCO JSON. Masks are not rasterised for them: what claims to be huge costs nothing.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Number
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from .images import displayed_size
from .rle import read_runs, rle_size

Annotation = dict[str, Any]
Size = tuple[int, int]  # width, height, in pixels

# By how much a box or a mask may leave the picture, in pixels. COCO's do by rounding errors, and
# tools that count the border pixel in are off by one.
OUTSIDE_TOLERANCE = 1.0
# Polygons whose convex hull has less area than this, in square pixels, have none: a hair's breadth
# more than float32 can tell from zero.
MIN_POLYGON_AREA = 0.1


def why_refused(annotation: Annotation, size: Size) -> str | None:
    """Why no run starts with an annotation, None if it may: it is broken, and who wrote it must say
    what it should be.

    Args:
        annotation: of a COCO JSON, or of a dataset dict of Detectron2.
        size: of its image.

    Returns:
        what could follow "annotation 7".
    """
    for field in ("bbox", "category_id", "segmentation"):
        if annotation.get(field) is None:
            return f"has no {field!r}"
    box, segmentation = annotation["bbox"], annotation["segmentation"]
    if not is_whole(annotation["category_id"]):
        return f"has the category_id {annotation['category_id']!r}, not a whole number"
    if not is_crowd_flag(annotation.get("iscrowd", 0)):
        return f"has the iscrowd {annotation['iscrowd']!r}, not 0 or 1"
    if annotation.get("ignore"):
        return "has 'ignore' set, which Detectron2 does not support"
    if not _are_finite(box) or len(box) != 4:
        return f"has the bbox {box!r}, not four finite numbers"
    if isinstance(segmentation, dict):
        return _why_rle_refused(segmentation, size)
    if not isinstance(segmentation, list):
        return f"has a {type(segmentation).__name__} for a segmentation, not polygons or an RLE"
    if not segmentation:
        return "has no 'segmentation'"
    if not all(map(_are_finite, segmentation)):
        return "has a polygon that is not a list of finite numbers x, y, x, y, ..."
    return None


def why_dict_refused(annotation: Annotation) -> str | None:
    """What :func:`why_refused` does not look at, since Detectron2 takes care of it when it reads a
    COCO JSON: of a dataset dict that comes from elsewhere."""
    if annotation.get("bbox_mode") not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return (
            f"has the bbox_mode {annotation.get('bbox_mode')!r}, not BoxMode.XYXY_ABS or "
            "BoxMode.XYWH_ABS"
        )
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        if not isinstance(segmentation["counts"], (str, bytes)):
            return "has an RLE that is not compressed, as pycocotools.mask.frPyObjects does it"
    elif len(sound_polygons(segmentation)) < len(segmentation):
        return "has a polygon of fewer than 3 points"
    return None


def why_unusable(annotation: Annotation, size: Size) -> str | None:
    """Why an annotation that is not refused is left out, None if it is used.

    Args:
        annotation: of a COCO JSON, or of a dataset dict of Detectron2.
        size: of its image.

    Returns:
        the kind of its fault.
    """
    reason = _why_mask_unusable(annotation["segmentation"], size)
    if reason is not None:
        return reason
    x1, y1, x2, y2 = xyxy(annotation)
    if x2 <= x1 or y2 <= y1:
        return "a box without area"
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        return "a box outside the image"
    return None


def drop_unusable(dicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave the annotations out that are of no use, and say so in one warning, with their numbers.

    Args:
        dicts: dataset dicts of Detectron2, without annotations that are refused.

    Returns:
        as many dicts; those that had such annotations are copies without them.
    """
    kept_dicts, dropped = [], []
    for record in dicts:
        annotations = record.get("annotations", [])
        size = _size_of(record) if annotations else None
        reasons = [why_unusable(annotation, size) for annotation in annotations]
        if any(reasons):
            dropped += [(reason, record["file_name"]) for reason in reasons if reason]
            kept = [a for a, reason in zip(annotations, reasons) if not reason]
            record = {**record, "annotations": kept}
        kept_dicts.append(record)
    if dropped:
        logging.getLogger(__name__).warning(
            f"Annotations that training leaves out: {describe_dropped(dropped)}"
        )
    return kept_dicts


def describe_dropped(dropped: Iterable[tuple[str, str]]) -> str:
    """How many of which kind, and an example of each.

    Args:
        dropped: pairs of :func:`why_unusable`'s reason and the image's file.
    """
    dropped = list(dropped)
    examples = dict(reversed(dropped))
    counts = Counter(reason for reason, _ in dropped)
    kinds = (f"{n} with {reason} (as in {examples[reason]})" for reason, n in counts.items())
    return f"{len(dropped)}: {', '.join(kinds)}"


def evaluated(annotation: Annotation, size: Size) -> Annotation:
    """What an annotation of a COCO JSON that is used is evaluated as: without polygons of fewer
    than 3 points, and with its box clipped to the image, as the boxes that are found are.

    Boxes that leave the image by no more than OUTSIDE_TOLERANCE stay as they are.
    """
    annotation = {"iscrowd": 0, **annotation}
    if isinstance(annotation["segmentation"], list):
        annotation["segmentation"] = sound_polygons(annotation["segmentation"])
    box = np.array(xyxy(annotation))
    clipped = clip_box(box, size)
    if np.abs(box - clipped).max() > OUTSIDE_TOLERANCE:
        annotation["bbox"] = [*clipped[:2].tolist(), *(clipped[2:] - clipped[:2]).tolist()]
    return annotation


def xyxy(annotation: Annotation) -> tuple[float, float, float, float]:
    """The box; without "bbox_mode" it is [x, y, width, height], as in a COCO JSON."""
    x, y, a, b = annotation["bbox"]
    if annotation.get("bbox_mode", BoxMode.XYWH_ABS) == BoxMode.XYWH_ABS:
        return x, y, x + a, y + b
    return x, y, a, b


def clip_box(box: np.ndarray, size: Size) -> np.ndarray:
    """(4,) XYXY, as far as it is visible."""
    return box.clip(0, np.tile(size, 2))


def sound_polygons(segmentation: Iterable[Sequence[float]]) -> list[Sequence[float]]:
    """Polygons of 3 points or more, as Detectron2 chooses them when it reads a COCO JSON."""
    return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]


def leaves_image(points: np.ndarray, size: Size) -> bool:
    """Whether points (P, 2) are farther outside an image than OUTSIDE_TOLERANCE."""
    return bool((np.abs(points - points.clip(0, size)) > OUTSIDE_TOLERANCE).any())


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_crowd_flag(value: Any) -> bool:
    return isinstance(value, Number) and value in (0, 1)


def hull_area(points: np.ndarray) -> float:
    """Of the convex hull of points (P, 2): what a polygon that crosses itself adds up to may be
    nothing."""
    return cv2.contourArea(cv2.convexHull((points - points.min(axis=0)).astype(np.float32)))


def _are_finite(values: Any) -> bool:
    # A sum is several times as fast as a look at each of many numbers.
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):  # what is no list, or not of numbers that are floats
        return False


def _why_rle_refused(rle: dict[str, Any], size: Size) -> str | None:
    try:
        width, height = rle_size(rle)
        if (width, height) != tuple(size):
            return f"has an RLE of {width} x {height} pixels in an image of {size[0]} x {size[1]}"
        read_runs(rle)
    except ValueError as error:
        return f"has an RLE that is none: {error}"
    return None


def _why_mask_unusable(segmentation: Any, size: Size) -> str | None:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        area = sum(counts[1::2]) if isinstance(counts, list) else mask_util.area(segmentation)
        return None if area else "a mask without area"
    polygons = sound_polygons(segmentation)
    if not polygons:
        return "no polygon of 3 or more points"
    parts = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    points = np.concatenate(parts)
    for low, high, side in zip(points.min(axis=0), points.max(axis=0), size):
        if low < -side or high > 2 * side:
            return "a mask far outside the image"
        if high <= 0 or low >= side:
            return "a mask outside the image"
    return None if any(map(_has_area, parts)) else "a mask without area"


def _has_area(points: np.ndarray) -> bool:
    x, y = (points - points[0]).T
    enclosed = abs(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2  # quick, and nearly always enough
    return enclosed >= MIN_POLYGON_AREA or hull_area(points) >= MIN_POLYGON_AREA


def _size_of(record: dict[str, Any]) -> Size:
    if "width" in record and "height" in record:
        return record["width"], record["height"]
    return displayed_size(record["file_name"])
