"""What can be known to be wrong with the data before a run starts."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

# EXIF orientations that turn the image by 90 degrees; Detectron2 applies them when it reads.
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = (5, 6, 7, 8)


def check_datasets(names: Sequence[str], num_classes: int) -> None:
    """Check datasets against their files and against the model.

    Reads the header of every image, which takes some seconds for a hundred thousand.

    Args:
        names: of registered datasets.
        num_classes: ``cfg.MODEL.YOLACT.NUM_CLASSES``.

    Raises:
        ValueError: naming the dataset and the file, key or value that is wrong.
    """
    for name in names:
        check_dataset(name, num_classes)


def check_dataset(name: str, num_classes: int) -> None:
    """See :func:`check_datasets`."""
    if name not in DatasetCatalog:
        raise ValueError(
            f"DATASETS: {name!r} is not registered; known are {', '.join(DatasetCatalog.list())}"
        )
    try:
        dicts = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"dataset {name!r} not found: {error}. Datasets are looked for in the folder that "
            "DETECTRON2_DATASETS names (./datasets by default)"
        ) from error
    if not dicts:
        raise ValueError(f"dataset {name!r} has no images")

    classes = MetadataCatalog.get(name).thing_classes
    if len(classes) != num_classes:
        raise ValueError(
            f"dataset {name!r} has {len(classes)} categories, but MODEL.YOLACT.NUM_CLASSES is "
            f"{num_classes}: set it to {len(classes)}"
        )

    with ThreadPoolExecutor() as pool:
        for fault in pool.map(image_fault, dicts, chunksize=64):
            if fault:
                raise ValueError(f"dataset {name!r}: {fault}")


def image_fault(record: Dict[str, Any]) -> Optional[str]:
    """What is wrong with the image of a dataset dict, if anything."""
    path = record["file_name"]
    if not os.path.isfile(path):
        return f"{path} does not exist"
    try:
        size = displayed_size(path)
    except OSError as error:
        return f"{path} cannot be read as an image: {error}"
    recorded: List[Any] = [record.get("width", size[0]), record.get("height", size[1])]
    if recorded != list(size):
        return (
            f"{path} is {size[0]} x {size[1]} (width x height), but is recorded as "
            f"{recorded[0]} x {recorded[1]}"
        )
    return None


def displayed_size(path: str) -> tuple:
    """(width, height) of an image file as it will be read, from its header alone."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TURNED
    return (height, width) if turned else (width, height)
