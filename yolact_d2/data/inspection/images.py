"""What is wrong with the image files of a COCO JSON."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from detectron2.utils.file_io import PathManager

from ..images import UnreadableImage, leaves_folder, read_image
from .annotations import Fault


def images_faults(records: Sequence[dict[str, Any]], image_root: str) -> Iterator[list[Fault]]:
    """:func:`image_faults` of many images, decoded in parallel, in their order."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(partial(image_faults, image_root=image_root), records)


def image_faults(record: dict[str, Any], image_root: str) -> list[Fault]:
    """Decode an image as training will, and compare it with its record.

    Args:
        record: of a COCO JSON, with "file_name", "width" and "height".
        image_root: the folder of the images.
    """
    name = record["file_name"]
    if leaves_folder(name):
        return [("path_outside", f"{name!r} is not inside the folder of images")]
    path = os.path.join(image_root, name)
    if not PathManager.isfile(path):
        return [("missing_image", f"{path} does not exist")]
    try:
        height, width = read_image(path, format="RGB").shape[:2]
    except UnreadableImage as error:
        return [("unreadable_image", str(error))]
    recorded = record["width"], record["height"]
    if recorded != (width, height):
        detail = f"{path} is {width} x {height} (width x height), recorded as "
        return [("wrong_size", f"{detail}{recorded[0]} x {recorded[1]}")]
    return []
