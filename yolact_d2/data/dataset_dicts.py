"""Validation of Detectron2's dataset dicts, and of their image files."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .annotations import Annotation, Size, annotation_issues, is_whole, valid_polygons
from .coco_json import repeated
from .images import UnreadableImage, displayed_size, leaves_folder, read_image
from .issues import DROPPED, FATAL, NOTE, Issue, count_by_kind, is_usable
from .mismatch import likely_cause

DatasetDict = dict[str, Any]
Read = Literal["nothing", "header", "all"]

logger = logging.getLogger(__name__)


def validate_dicts(
    dicts: Sequence[DatasetDict], num_classes: int | None = None, *, evaluation: bool = False
) -> tuple[list[DatasetDict], list[Issue]]:
    """Validate dataset dicts of Detectron2, except their image files.

    Args:
        num_classes: categories must be 0..num_classes - 1. None: they are not checked.
        evaluation: require the fields that Detectron2's evaluators need.

    Returns:
        the dicts, those with unusable annotations as copies without them; and all issues.

    Raises:
        UnreadableImage: if the size of an image is neither recorded nor readable.
    """
    usable, issues = [], []
    for record in dicts:
        where = record.get("file_name"), record.get("image_id")
        wrong = _wrong_image_field(record, evaluation)
        if wrong:
            issues.append(Issue("bad_record", FATAL, wrong, *where))
            continue
        annotations, kept = record.get("annotations", []), []
        size = recorded_size(record) if annotations else None
        for number, annotation in enumerate(annotations):
            size = size or displayed_size(record["file_name"])
            found = annotation_issues(annotation, size)
            if all(issue.severity is not FATAL for issue in found):
                found += _dict_issues(annotation, num_classes)
            if is_usable(found):
                kept.append(annotation)
            for kind, severity, detail, *_ in found:
                issues.append(Issue(kind, severity, f"annotations[{number}]: {detail}", *where))
        all_kept = len(kept) == len(annotations)
        usable.append(record if all_kept else {**record, "annotations": kept})
    for record, first in repeated(usable, "file_name"):
        ids = first.get("image_id"), record.get("image_id")
        if ids[0] != ids[1]:
            detail = f"it has the image ids {ids[0]!r} and {ids[1]!r}"
            issues.append(Issue("duplicate_file", NOTE, detail, record["file_name"]))
    if evaluation:
        for record in usable:
            image_id, first_id = record["image_id"], usable[0]["image_id"]
            if isinstance(image_id, str) != isinstance(first_id, str):
                detail = f"'image_id' is {image_id!r}, but that of another image is {first_id!r}"
                issues.append(Issue("bad_record", FATAL, detail, record["file_name"]))
        for record, first in repeated(usable, "image_id"):
            detail = f"'image_id' is {record['image_id']!r}, as that of {first['file_name']}"
            issues.append(Issue("duplicate_id", FATAL, detail, record["file_name"]))
    return usable, issues


def image_issues(
    records: Iterable[DatasetDict], image_root: str | None, read: Read = "header"
) -> Iterator[Issue | None]:
    """Check image files in parallel; yields one result for each file, in their order.

    Args:
        records: dataset dicts with "file_name" and, if recorded, "width" and "height".
        image_root: the folder that the files must be in; links are followed. None: any.
        read: how much of the files to read. "nothing" checks their paths only.
    """
    with ThreadPoolExecutor() as pool:
        check = partial(_image_issue, image_root=image_root, read=read)
        yield from pool.map(check, records)


def _image_issue(record: DatasetDict, image_root: str | None, read: Read) -> Issue | None:
    path, size = record["file_name"], recorded_size(record)
    if image_root is not None and leaves_folder(os.path.relpath(path, image_root)):
        detail = f"{path} is outside the image folder {image_root}; DATASETS.ALLOW_PATHS_OUTSIDE "
        return Issue("path_outside", FATAL, f"{detail}True lets training use it")
    if read == "nothing":
        return None
    try:
        actual = displayed_size(path)
    except UnreadableImage as error:
        kind = "unreadable_image" if PathManager.isfile(path) else "missing_image"
        return Issue(kind, FATAL, str(error))
    if size is not None and size != actual:
        detail = f"{path} is {actual[0]} x {actual[1]} (width x height), but is recorded as "
        return Issue("wrong_size", FATAL, f"{detail}{size[0]} x {size[1]}")
    if read == "all":
        try:
            read_image(path, format="RGB")
        except UnreadableImage as error:
            return Issue("unreadable_image", DROPPED, str(error))
    return None


def warn_dropped(issues: Iterable[Issue], name: str, training: bool) -> None:
    """Count the annotations that training leaves out in one warning, if there are any."""
    dropped = [issue for issue in issues if issue.severity is DROPPED]
    if dropped:
        outcome = "are left out of training" if training else "count in COCO's evaluation"
        logger.warning(f"Dataset {name}: faulty annotations {outcome}: {count_by_kind(dropped)}")


def warn_suspicious(
    usable: Sequence[DatasetDict], issues: Sequence[Issue], name: str, num_annotations: int
) -> None:
    """Warn of files with several image ids, and if most boxes disagree with their masks.

    Args:
        usable, issues: see :func:`validate_dicts`.
        num_annotations: usable or not.
    """
    files = [issue for issue in issues if issue.kind == "duplicate_file"]
    if files:
        logger.warning(f"Dataset {name}: {count_by_kind(files)}")
    # An annotation has one of these at most.
    num_wrong = sum(issue.kind == "mask_box_mismatch" or _is_bad_box(issue) for issue in issues)
    if num_wrong > num_annotations / 2:
        sized = ((x, size) for x in usable if (size := recorded_size(x)))
        annotations = ((a, size) for x, size in sized for a in x.get("annotations", []))
        cause = likely_cause(list(itertools.islice(annotations, 1000)))
        logger.warning(
            f"Dataset {name}: {num_wrong} of {num_annotations} boxes disagree with their masks"
            + (f"; {cause}" if cause else "")
        )


def _is_bad_box(issue: Issue) -> bool:
    return issue.kind in ("box_outside", "empty_box") and issue.severity is DROPPED


def recorded_size(record: DatasetDict) -> Size | None:
    """The size of the image, if the dataset dict has it."""
    return (record["width"], record["height"]) if {"width", "height"} <= record.keys() else None


def _wrong_image_field(record: DatasetDict, evaluation: bool) -> str | None:
    if not isinstance(record.get("file_name"), str):
        return f"'file_name' of an image is {record.get('file_name')!r}"
    if not isinstance(record.get("annotations", []), (list, tuple)):
        return f"'annotations' of the image is {record['annotations']!r}, not a list"
    for key in ("width", "height"):
        if key in record and not (_is_integral(record[key]) and record[key] > 0):
            return f"{key!r} of the image is {record[key]!r}, not a number of pixels"
        if key not in record and evaluation:
            return f"{key!r} of the image is missing, which evaluation needs"
    image_id = record.get("image_id")
    # NumPy's numbers cannot be written to the JSON of the results.
    is_number = type(image_id) in (int, float) and _is_integral(image_id)
    if evaluation and not (is_number or type(image_id) is str):
        return f"'image_id' is {image_id!r}, not a whole number or text"
    return None


def _is_integral(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float) and value.is_integer()


def _dict_issues(annotation: Annotation, num_classes: int | None) -> Iterator[Issue]:
    """Rules that the dicts of a COCO JSON never break, since Detectron2 converts them."""
    mode, category = annotation.get("bbox_mode"), annotation["category_id"]
    segmentation = annotation["segmentation"]
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        detail = f"'bbox_mode' is {mode!r}, not BoxMode.XYXY_ABS or BoxMode.XYWH_ABS"
        yield Issue("bad_record", FATAL, detail)
    if num_classes is not None and not 0 <= category < num_classes:
        detail = f"'category_id' is {category}, not one in 0..{num_classes - 1}"
        yield Issue("unknown_category", FATAL, detail)
    if isinstance(segmentation, list):
        if len(valid_polygons(segmentation)) < len(segmentation):
            yield Issue("degenerate_polygon", FATAL, "a polygon has fewer than 3 points")
    elif isinstance(segmentation["counts"], list):
        detail = "the RLE is not compressed; pycocotools.mask.frPyObjects compresses it"
        yield Issue("bad_rle", FATAL, detail)
