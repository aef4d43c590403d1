"""What can be known to be wrong with the data before a run starts."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Dict, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

# EXIF orientations that turn the image by 90 degrees; Detectron2 applies them when it reads.
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = (5, 6, 7, 8)


def check_datasets(key: str, names: Sequence[str], num_classes: int) -> None:
    """Check datasets against their files and against the model.

    Reads the header of every image, which takes some seconds for a hundred thousand.

    Args:
        key: "DATASETS.TRAIN" or "DATASETS.TEST".
        names: its value, names of registered datasets.
        num_classes: ``cfg.MODEL.YOLACT.NUM_CLASSES``.

    Raises:
        ValueError: naming the dataset and the file, key or value that is wrong.
    """
    if not names:
        raise ValueError(f"{key} is empty: name a dataset")
    for name in names:
        if name not in DatasetCatalog:
            known = ", ".join(DatasetCatalog.list())
            raise ValueError(f"{key}: {name!r} is not registered; known are {known}")
        check_dataset(name, num_classes)


def check_dataset(name: str, num_classes: int) -> None:
    """See :func:`check_datasets`."""
    try:
        dicts = DatasetCatalog.get(name)
    except OSError as error:
        raise ValueError(
            f"dataset {name!r} cannot be read: {error}. The datasets of Detectron2 and of this "
            "project are in the folder that DETECTRON2_DATASETS names, ./datasets by default"
        ) from error
    if not dicts:
        raise ValueError(f"dataset {name!r} has no images")

    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None:
        raise ValueError(f"dataset {name!r} has no category names: set its metadata thing_classes")
    if len(classes) != num_classes:
        raise ValueError(
            f"dataset {name!r} has {len(classes)} categories, but MODEL.YOLACT.NUM_CLASSES is "
            f"{num_classes}: set it to {len(classes)}"
        )

    with ThreadPoolExecutor() as pool:
        for fault in pool.map(partial(record_fault, num_classes=num_classes), dicts):
            if fault:
                raise ValueError(f"dataset {name!r}: {fault}")


def record_fault(record: Dict[str, Any], num_classes: int) -> Optional[str]:
    """What is wrong with a dataset dict or its image, if anything."""
    path = record["file_name"]
    for annotation in record.get("annotations", []):
        for field in ("bbox", "category_id", "segmentation"):
            if field not in annotation:
                return f"{path}: an object has no {field!r}"
        if not 0 <= annotation["category_id"] < num_classes:
            return f"{path}: category_id {annotation['category_id']} is not in 0..{num_classes - 1}"
    if not PathManager.isfile(path):
        return f"{path} does not exist"
    try:
        width, height = displayed_size(path)
    except Exception as error:  # Pillow raises many kinds for what is not an image
        return f"{path} cannot be read as an image: {error}"
    recorded = record.get("width", width), record.get("height", height)
    if recorded != (width, height):
        return (
            f"{path} is {width} x {height} (width x height), but is recorded as "
            f"{recorded[0]} x {recorded[1]}"
        )
    return None


def displayed_size(path: str) -> Tuple[int, int]:
    """(width, height) of an image file as it will be read, from its header alone."""
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        width, height = image.size
        # Pillow decodes the whole of a PNG in search of EXIF behind the pixels.
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TURNED
    return (height, width) if turned else (width, height)
