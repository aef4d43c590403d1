"""What can be known to be wrong with the data before a run starts."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from .annotations import is_whole, why_dict_refused, why_refused
from .coco_json import read_checked_coco
from .images import UnreadableImage, displayed_size, leaves_folder
from .coco_dataset import TRAIN_NAME, VAL_NAME


def check_datasets(cfg, key: str) -> None:
    """Check datasets against their files and against the model.

    Reads the header of every image and looks at every annotation, which takes some seconds for a
    hundred thousand.

    Args:
        cfg: DATASETS, and MODEL.YOLACT.NUM_CLASSES.
        key: "DATASETS.TRAIN" or "DATASETS.TEST": the names of registered datasets.

    Raises:
        ValueError: naming the dataset and the file, key or value that is wrong.
    """
    names = cfg.DATASETS.TRAIN if key == "DATASETS.TRAIN" else cfg.DATASETS.TEST
    if not names:
        raise ValueError(f"{key} is empty: name a dataset")
    for name in names:
        if name not in DatasetCatalog:
            hint = f"known are {', '.join(DatasetCatalog.list())}"
            if name in (TRAIN_NAME, VAL_NAME):
                hint = (
                    "train_net.py registers it when it is given --train-json and --train-images, "
                    "or --val-json and --val-images, again"
                )
            raise ValueError(f"{key}: {name!r} is not registered; {hint}")
        check_dataset(cfg, name)


def check_on_each_machine(cfg, *keys: str) -> None:
    """:func:`check_datasets` in one process of each machine, to be called by all processes. What is
    wrong is raised by all."""
    error = None
    if comm.get_local_rank() == 0:
        try:
            for key in keys:
                check_datasets(cfg, key)
        except ValueError as fault:
            error = str(fault)
    errors = [error for error in comm.all_gather(error) if error]
    if errors:
        raise ValueError(errors[0])


def check_dataset(cfg, name: str) -> None:
    """See :func:`check_datasets`."""
    try:
        dicts = DatasetCatalog.get(name)
    except OSError as error:
        raise ValueError(
            f"dataset {name!r} cannot be read: {error}. The datasets of Detectron2 and of this "
            "project are in the folder that DETECTRON2_DATASETS names, ./datasets by default"
        ) from error
    except Exception as error:  # many kinds, which do not say where
        json_file = MetadataCatalog.get(name).get("json_file")
        if json_file:
            read_checked_coco(json_file)
        raise ValueError(
            f"dataset {name!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not dicts:
        raise ValueError(f"dataset {name!r} has no images")

    metadata, num_classes = MetadataCatalog.get(name), cfg.MODEL.YOLACT.NUM_CLASSES
    classes = metadata.get("thing_classes")
    if classes is None:
        raise ValueError(f"dataset {name!r} has no category names: set its metadata thing_classes")
    if len(classes) != num_classes:
        raise ValueError(
            f"dataset {name!r} has {len(classes)} categories, but MODEL.YOLACT.NUM_CLASSES is "
            f"{num_classes}: set it to {len(classes)}"
        )

    image_root = None if cfg.DATASETS.ALLOW_PATHS_OUTSIDE else metadata.get("image_root")
    find_fault = partial(record_fault, num_classes=num_classes, image_root=image_root)
    with ThreadPoolExecutor() as pool:
        for fault in pool.map(find_fault, dicts):
            if fault:
                pool.shutdown(wait=False, cancel_futures=True)
                raise ValueError(f"dataset {name!r}: {fault}")


def record_fault(
    record: dict[str, Any], num_classes: int, image_root: str | None = None
) -> str | None:
    """What is wrong with a dataset dict or its image, if anything.

    Args:
        num_classes: of the model.
        image_root: a folder that the file must be in. Links lead where they lead.
    """
    path = record.get("file_name")
    if not isinstance(path, str):
        return f"an image has the file_name {path!r}"
    if image_root is not None and leaves_folder(os.path.relpath(path, image_root)):
        return (
            f"{path} is not inside the folder of images, {image_root}; if it may be elsewhere, "
            "set DATASETS.ALLOW_PATHS_OUTSIDE True"
        )
    try:
        size = displayed_size(path)
    except UnreadableImage as error:
        return str(error)
    recorded = record.get("width", size[0]), record.get("height", size[1])
    if recorded != size or not all(map(is_whole, recorded)):
        return (
            f"{path} is {size[0]} x {size[1]} (width x height), but is recorded as "
            f"{recorded[0]} x {recorded[1]}"
        )
    for number, annotation in enumerate(record.get("annotations", [])):
        fault = why_refused(annotation, size) or why_dict_refused(annotation)
        category = annotation.get("category_id")
        if not fault and not 0 <= category < num_classes:
            fault = f"has the category_id {category}, not one in 0..{num_classes - 1}"
        if fault:
            return f"{path}: object {number} (from 0) {fault}"
    return None
