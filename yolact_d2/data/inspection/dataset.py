"""Inspection of a whole COCO JSON: every defect, and what the sound part consists of."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..annotations import is_crowd_flag
from ..coco_json import LISTS
from .annotations import annotation_faults
from .defects import Defect
from .images import images_faults

Record = dict[str, Any]
_FIELDS = {
    "images": {"id": (int, str), "file_name": (str,), "width": (int,), "height": (int,)},
    "annotations": {"id": (int,), "image_id": (int, str), "category_id": (int,)},
    "categories": {"id": (int,), "name": (str,)},
}


class Inspection(NamedTuple):
    """What is wrong, and the records that can be counted all the same."""

    defects: list[Defect]
    images: list[Record]
    """Those with all fields and distinct ids, whatever their files are like."""
    annotations: list[Record]
    """Those of these images and categories with a proper box, whatever their masks are like."""
    categories: list[Record]
    """Those with all fields and distinct ids."""


def inspect_dataset(
    coco: dict[str, list[Any]],
    image_root: str,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Inspection:
    """Find every defect of a dataset.

    Args:
        coco: see :func:`yolact_d2.data.coco_json.read_coco`.
        image_root: the folder of its images.
        progress: wraps what is iterated over, given with its length, to show how far it is.
    """
    defects = [Defect("empty_list", f"{key!r} has nothing in it") for key in LISTS if not coco[key]]
    defects += [defect for key in LISTS for defect in _record_defects(key, coco[key])]
    images = [record for record in coco["images"] if not field_faults("images", record)]
    files = progress(images_faults(images, image_root), len(images))
    for faults, image in zip(files, images):  # files first: the progress must see their end
        defects += [Defect(*fault, image["file_name"], image["id"]) for fault in faults]

    known_images = _by_id(images)
    categories = _by_id(c for c in coco["categories"] if not field_faults("categories", c))
    # A record that is itself a defect is not a reason to complain about all that refers to it.
    image_ids, category_ids = _ids(coco["images"]), _ids(coco["categories"])
    countable = []
    for annotation in coco["annotations"]:
        if not isinstance(annotation, dict):
            continue
        wrong_fields = {key for key, _ in _wrong_fields("annotations", annotation)}
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        faults = []
        if "image_id" not in wrong_fields and image_id not in image_ids:
            faults.append(("unknown_image", f"there is no image with the id {image_id!r}"))
        if "category_id" not in wrong_fields and category_id not in category_ids:
            faults.append(("unknown_category", f"there is no category with the id {category_id}"))
        image = None if "image_id" in wrong_fields else known_images.get(image_id)
        size = image and (image["width"], image["height"])
        faults += annotation_faults(annotation, size)
        where = image and image["file_name"], image_id, annotation.get("id")
        defects += [Defect(*fault, *where) for fault in faults]
        has_box = not {"bad_record", "empty_box"} & {kind for kind, _ in faults}
        if image and not wrong_fields and category_id in categories and has_box:
            countable.append(annotation)
    return Inspection(defects, list(known_images.values()), countable, list(categories.values()))


def field_faults(key: str, record: Any) -> list[tuple[str, str]]:
    """What is wrong with the fields of a record of the list `key`, as pairs (kind, detail)."""
    if not isinstance(record, dict):
        return [("bad_record", f"a record of {key!r} is {record!r}, not a dict")]
    return [("bad_record", detail) for _, detail in _wrong_fields(key, record)]


def _wrong_fields(key: str, record: Record) -> Iterator[tuple[str, str]]:
    """(name, detail) of each field that is missing or of a wrong type or value."""
    for name, types in _FIELDS[key].items():
        value = record.get(name)
        if type(value) not in types or name in ("width", "height") and value < 1:
            yield name, f"{name!r} of a record of {key!r} is {value!r}"
    if key == "annotations" and not is_crowd_flag(record.get("iscrowd", 0)):
        yield "iscrowd", f"'iscrowd' of a record of {key!r} is {record['iscrowd']!r}, not 0 or 1"
    if record.get("ignore"):
        yield "ignore", "'ignore' is set, which Detectron2 does not support"


def _record_defects(key: str, records: list[Any]) -> Iterator[Defect]:
    """Fields that are wrong, and ids that were there before."""
    seen = set()
    for record in records:
        where = _where(key, record)
        for fault in field_faults(key, record):
            yield Defect(*fault, *where)
        for i in _ids([record]):
            if i in seen:
                yield Defect("duplicate_id", f"{key!r} has the id {i!r} twice", *where)
            seen.add(i)


def _where(key: str, record: Any) -> tuple[Any, Any, Any]:
    """(file, image id, annotation id), as far as they are known."""
    if not isinstance(record, dict) or key == "categories":
        return None, None, None
    if key == "images":
        return record.get("file_name"), record.get("id"), None
    return None, record.get("image_id"), record.get("id")


def _ids(records: Iterable[Any]) -> set[int | str]:
    ids = (record.get("id") for record in records if isinstance(record, dict))
    return {i for i in ids if type(i) in (int, str)}


def _by_id(records: Iterable[Record]) -> dict[int | str, Record]:
    """Of records with the same id, the first."""
    by_id = {}
    for record in records:
        by_id.setdefault(record["id"], record)
    return by_id
