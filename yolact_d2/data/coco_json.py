"""Reads files in COCO's format."""

import json
from typing import Any, Dict, List

from detectron2.utils.file_io import PathManager

LISTS = ("images", "annotations", "categories")


def read_coco(path: str) -> Dict[str, List[Any]]:
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
