"""COCO JSON files: reading, validation, and conversion to Detectron2's dataset dicts."""

import codecs
import json
import locale
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from pycocotools import mask as mask_util

from .annotations import annotation_issues, valid_polygons
from .issues import FATAL, NOTE, Issue, is_usable

Record = dict[str, Any]
COCO = dict[str, list[Any]]

_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
_TYPE_NAMES = {int: "a whole number", str: "text"}


def read_json(path: str) -> Any:
    """Read a JSON in UTF-8, 16 or 32, with or without a byte order mark.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file and what is wrong with it.
    """
    try:
        with open(PathManager.get_local_path(path), "rb") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def pycocotools_reads(path: str) -> bool:
    """Whether pycocotools, which reads text in the encoding of the locale, can read a JSON. It is
    left to report that there is no file."""
    try:
        with open(PathManager.get_local_path(path), "rb") as file:
            encoding = json.detect_encoding(file.read(4))
    except OSError:
        return True
    return encoding == codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"


def read_coco(path: str) -> COCO:
    """Read a COCO JSON, and check that its lists are there. Whole numbers become int, and category
    names that are numbers become text.

    Raises:
        see :func:`read_json`.
    """
    coco = read_json(path)
    for key in _FIELDS:
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise ValueError(f"{path} is not in COCO's format: it has no list {key!r}")
        for record in filter(lambda record: isinstance(record, dict), coco[key]):
            for field, expected in _FIELDS[key].items():
                value = record.get(field)
                if expected is int and isinstance(value, float) and value.is_integer():
                    record[field] = int(value)
                elif field == "name" and type(value) in (int, float):
                    record[field] = str(value)
    return coco


class ValidatedCOCO(NamedTuple):
    """The issues of a COCO JSON, and its records that have no fatal issue."""

    issues: list[Issue]
    images: list[Record]
    annotations: list[Record]
    """Without those that are dropped."""
    categories: list[Record]


def validate_coco(coco: COCO) -> ValidatedCOCO:
    """Find all issues of a COCO JSON, except those of the image files."""
    issues: list[Issue] = []
    images, annotations, categories = (_valid_records(coco, key, issues) for key in _FIELDS)
    for record, first in repeated(images.values(), "file_name"):
        detail = f"it has the image ids {first['id']} and {record['id']}"
        issues.append(Issue("duplicate_file", NOTE, detail, record["file_name"]))
    for record, first in repeated(categories.values(), "name"):
        detail = f"the categories {first['id']} and {record['id']} are both {first['name']!r}"
        issues.append(Issue("duplicate_name", NOTE, detail))
    # Report a faulty record once, not again for each reference to it.
    image_ids, category_ids = _all_ids(coco["images"]), _all_ids(coco["categories"])
    usable = []
    for annotation in annotations.values():
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        image, found = images.get(image_id), []
        if image_id not in image_ids:
            found.append(Issue("unknown_image", FATAL, f"there is no image with id {image_id!r}"))
        if category_id not in category_ids:
            detail = f"there is no category with id {category_id}"
            found.append(Issue("unknown_category", FATAL, detail))
        if image is not None:
            found += annotation_issues(annotation, (image["width"], image["height"]))
            if is_usable(found) and category_id in categories:
                usable.append(annotation)
        file = image["file_name"] if image else None
        issues += [Issue(*x[:3], file, image_id, annotation["id"]) for x in found]
    return ValidatedCOCO(issues, list(images.values()), usable, list(categories.values()))


def repeated(records: Iterable[Record], field: str) -> Iterator[tuple[Record, Record]]:
    """Records with a value that an earlier one has, each with the first of that value."""
    firsts: dict[Any, Record] = {}
    for record in records:
        value = os.path.normpath(record[field]) if field == "file_name" else record[field]
        if value in firsts:
            yield record, firsts[value]
        else:
            firsts[value] = record


def class_numbers(categories: Sequence[Record]) -> dict[int, int]:
    """The model's class, 0..C-1, of each category id: classes are in the order of the ids."""
    return {i: number for number, i in enumerate(sorted(c["id"] for c in categories))}


def to_dataset_dicts(coco: COCO, image_root: str, classes: Mapping[int, int]) -> list[Record]:
    """Convert a COCO JSON as :func:`detectron2.data.datasets.load_coco_json` does.

    Args:
        coco: without fatal issues; its categories are not used.
        image_root: the folder that the file names are relative to.
        classes: the class of each category id.
    """
    annotations = defaultdict(list)
    num_dropped = 0
    for annotation in coco["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = [list(polygon) for polygon in valid_polygons(segmentation)]
        elif isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        num_dropped += not segmentation
        if segmentation:
            converted = {key: annotation[key] for key in ("iscrowd",) if key in annotation}
            converted["bbox"] = list(annotation["bbox"])  # The caller may change the dicts.
            converted["category_id"] = classes[annotation["category_id"]]
            converted["segmentation"] = segmentation
            converted["bbox_mode"] = BoxMode.XYWH_ABS
            annotations[annotation["image_id"]].append(converted)
    if num_dropped:
        logging.getLogger(__name__).warning(
            f"Annotations left out that have no polygon of 3 or more points: {num_dropped}"
        )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": annotations[image["id"]],
        }
        for image in sorted(coco["images"], key=lambda image: image["id"])
    ]


def _valid_records(coco: COCO, key: str, issues: list[Issue]) -> dict[Any, Record]:
    """The records with proper fields, by id; adds what is wrong with the others to `issues`."""
    valid: dict[Any, Record] = {}
    if not coco[key]:
        severity = NOTE if key == "annotations" else FATAL
        issues.append(Issue("empty_list", severity, f"{key!r} is empty"))
    for number, record in enumerate(coco[key]):
        kind, detail = "bad_record", _wrong_record_field(key, record)
        if not detail and record["id"] in valid:
            kind, detail = "duplicate_id", f"has the id {record['id']!r} of another record"
        if not detail:
            valid[record["id"]] = record
            continue
        file = image_id = annotation_id = None
        if isinstance(record, dict) and key == "images":
            file, image_id = record.get("file_name"), record.get("id")
        elif isinstance(record, dict) and key == "annotations":
            image_id, annotation_id = record.get("image_id"), record.get("id")
        detail = f"{key}[{number}] {detail}"
        issues.append(Issue(kind, FATAL, detail, file, image_id, annotation_id))
    return valid


def _wrong_record_field(key: str, record: Any) -> str | None:
    if not isinstance(record, dict):
        return f"is {record!r}, not a dict"
    for field, expected in _FIELDS[key].items():
        value: Any = record.get(field)
        if type(value) is not expected:
            return f"has the {field!r} {value!r}, not {_TYPE_NAMES[expected]}"
        if field in ("width", "height") and record[field] < 1:
            return f"has the {field!r} {value!r}, not 1 or more pixels"
    return None


def _all_ids(records: Sequence[Any]) -> set[Any]:
    ids = (record.get("id") for record in records if isinstance(record, dict))
    return {i for i in ids if type(i) in (int, str)}
