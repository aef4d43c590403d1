"""Reads files in COCO's format."""

import json
from typing import Any

from detectron2.utils.file_io import PathManager

from .annotations import is_whole, why_refused

LISTS = ("images", "annotations", "categories")


def read_coco(path: str) -> dict[str, list[Any]]:
    """Read a COCO JSON. Of its three lists only that they are there is checked.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        with open(PathManager.get_local_path(path), encoding="utf-8") as file:
            coco = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    for key in LISTS:
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise ValueError(f"{path} is not in COCO's format: it has no list {key!r}")
    return coco


def read_checked_coco(path: str) -> dict[str, Any]:
    """A COCO file, with what Detectron2 and pycocotools rely on checked.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    coco = read_coco(path)
    if not coco["categories"]:
        raise ValueError(f"{path} has no categories")
    image_ids = _ids(path, "image", coco["images"], ("id", "file_name", "width", "height"))
    category_ids = _ids(path, "category", coco["categories"], ("id", "name"))
    _ids(path, "annotation", coco["annotations"], ("id", "image_id", "category_id"))
    for image in coco["images"]:
        if not isinstance(image["file_name"], str):
            raise ValueError(
                f"{path}: image {image['id']} has the file_name {image['file_name']!r}"
            )
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    for image_id, size in sizes.items():
        if not all(map(is_whole, size)):
            raise ValueError(
                f"{path}: image {image_id} is {size[0]!r} x {size[1]!r}, not in whole pixels"
            )
    for annotation in coco["annotations"]:
        if type(annotation["id"]) is not int:  # which pycocotools needs
            raise ValueError(f"{path}: the annotation id {annotation['id']!r} is not a number")
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            if not isinstance(annotation[key], (int, str)) or annotation[key] not in known:
                raise ValueError(
                    f"{path}: annotation {annotation['id']} has {key} {annotation[key]}, and there "
                    "is none"
                )
        fault = why_refused(annotation, sizes[annotation["image_id"]])
        if fault:
            raise ValueError(f"{path}: annotation {annotation['id']} {fault}")
    return coco


def _ids(path: str, kind: str, entries: list[dict[str, Any]], keys) -> set:
    """The ids of images, categories or annotations, all different, of entries with all `keys`."""
    ids = set()
    for place, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"{path}: {kind} number {place} (from 0) has no {missing[0]!r}")
        if not isinstance(entry["id"], (int, str)):
            raise ValueError(f"{path}: the {kind} id {entry['id']!r} is not a number")
        if entry["id"] in ids:
            raise ValueError(f"{path}: two have the {kind} id {entry['id']}")
        ids.add(entry["id"])
    return ids
