"""Checks of registered datasets before a run starts."""

import contextlib
import logging
from collections.abc import Callable

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..config import model_node
from .coco_dataset import (
    CUSTOM_TRAIN,
    CUSTOM_VAL,
    COCOSource,
    ground_truth_file,
    make_readable,
)
from .coco_json import read_coco, read_json, validate_coco
from .dataset_dicts import (
    DatasetDict,
    Read,
    image_issues,
    validate_dicts,
    warn_dropped,
    warn_suspicious,
)
from .images import UnreadableImage
from .issues import raise_fatal

logger = logging.getLogger(__name__)

# Checked training data for the loader, with the function it was registered with.
_checked: dict[str, tuple[Callable, list[DatasetDict]]] = {}


def check_datasets(cfg, key: str) -> None:
    """Check datasets against their image files and against the model.

    With DATASETS.CHECK_IMAGES this reads the header of every image, which takes some seconds for a
    hundred thousand.

    Args:
        cfg: DATASETS, and NUM_CLASSES and CLASS_NAMES of the model.
        key: "DATASETS.TRAIN" or "DATASETS.TEST": the names of registered datasets.

    Raises:
        ValueError: naming the dataset and the file, key or value that is wrong.
    """
    training = key == "DATASETS.TRAIN"
    names = cfg.DATASETS.TRAIN if training else cfg.DATASETS.TEST
    if not names:
        raise ValueError(f"{key} is empty: name a dataset")
    for name in names:
        dicts = _read_dataset(cfg, name, training)
        any_folder = cfg.DATASETS.ALLOW_PATHS_OUTSIDE
        image_root = None if any_folder else MetadataCatalog.get(name).get("image_root")
        read: Read = "header" if cfg.DATASETS.CHECK_IMAGES else "nothing"
        raise_fatal(filter(None, image_issues(dicts, image_root, read)), f"dataset {name!r}")
        if training:
            _checked[name] = DatasetCatalog[name], dicts


def check_on_each_machine(cfg, *keys: str) -> None:
    """:func:`check_datasets` in one process of each machine. All processes must call it, and all
    raise its error."""
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


def usable_training_dicts(cfg, name: str) -> list[DatasetDict]:
    """The dicts of a dataset without the annotations that cannot be trained on. They are read only
    if :func:`check_datasets` has not just done so.

    Raises:
        ValueError: see :func:`check_datasets`.
    """
    function, dicts = _checked.pop(name, (None, []))
    if function is not None and function is DatasetCatalog.data.get(name):
        return dicts
    return _read_dataset(cfg, name, training=True)


def _read_dataset(cfg, name: str, training: bool) -> list[DatasetDict]:
    """The dicts of a dataset without unusable annotations."""
    if name not in DatasetCatalog:
        raise ValueError(
            f"the dataset {name!r} is not registered. train_net.py registers {CUSTOM_TRAIN} and "
            f"{CUSTOM_VAL} when it is given --train-json and --val-json; known datasets are "
            f"{', '.join(DatasetCatalog)}"
        )
    dicts = _read_registered(name, training)
    if not dicts:
        raise ValueError(f"dataset {name!r} has no images")
    _check_classes(cfg, name)
    if not training and MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
        # Its evaluator reads the files of the dataset, whose annotations have no masks.
        dicts = [{**x, "annotations": []} for x in dicts]
    source = DatasetCatalog[name]
    if isinstance(source, COCOSource):  # which is valid
        usable, issues, num_annotations = dicts, source.issues, source.num_annotations
    else:
        num_classes = cfg.MODEL[model_node(cfg)].NUM_CLASSES
        try:
            usable, issues = validate_dicts(dicts, num_classes, evaluation=not training)
        except UnreadableImage as error:
            raise ValueError(f"dataset {name!r}: {error}") from error
        raise_fatal(issues, f"dataset {name!r}")
        num_annotations = sum(len(x.get("annotations", [])) for x in dicts)
        if not training:
            _check_ground_truth(name, {x["image_id"] for x in dicts})
    warn_dropped(issues, name, training)
    warn_suspicious(usable, issues, name, num_annotations)
    _warn_crowds_only(usable, name)
    return usable


def _read_registered(name: str, training: bool) -> list[DatasetDict]:
    try:
        make_readable(name, training)
        return DatasetCatalog.get(name)
    except OSError as error:
        raise ValueError(
            f"dataset {name!r} cannot be read: {error}. The datasets of Detectron2 and of this "
            "project are in the folder that DETECTRON2_DATASETS names, ./datasets by default"
        ) from error
    except Exception as error:  # of many types, and most do not name the annotation
        json_file = MetadataCatalog.get(name).get("json_file")
        if json_file:
            raise_fatal(validate_coco(read_coco(json_file)).issues, json_file)
        raise ValueError(f"dataset {name!r} cannot be read: {error!r}") from error


def _check_ground_truth(name: str, image_ids: set[int | str]) -> None:
    """Check what pycocotools needs of the JSON that a dataset is evaluated on, if there is one."""
    json_file = ground_truth_file(name)
    if json_file is None:
        return
    try:
        coco = read_json(json_file)
        known = {image["id"] for image in coco["images"]}
        annotation_ids = [annotation["id"] for annotation in coco.get("annotations", [])]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"dataset {name!r}: cannot evaluate on {json_file}: {error!r}") from error
    if image_ids - known:
        missing = next(iter(image_ids - known))
        raise ValueError(f"dataset {name!r}: {json_file} has no image with the id {missing!r}")
    for annotation_id in annotation_ids:
        if not isinstance(annotation_id, (int, float)):
            raise ValueError(f"{json_file}: the annotation id {annotation_id!r} is not a number")


def _check_classes(cfg, name: str) -> None:
    """Compare the classes of a dataset that has been read with those of the model."""
    node = model_node(cfg)
    classes, num_classes = _class_names(name), cfg.MODEL[node].NUM_CLASSES
    if classes is None:
        raise ValueError(f"dataset {name!r} has no category names: set its metadata thing_classes")
    if len(classes) != num_classes:
        raise ValueError(
            f"dataset {name!r} has {len(classes)} categories, but MODEL.{node}.NUM_CLASSES is "
            f"{num_classes}: set it to {len(classes)}"
        )
    if len(set(classes)) < num_classes:
        names = sorted({x for x in classes if classes.count(x) > 1})
        logger.warning(f"dataset {name!r} has several categories of the same name: {names}")
    source = f"MODEL.{node}.CLASS_NAMES"
    expected = list(map(str, cfg.MODEL[node].CLASS_NAMES))
    for other in () if expected else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = _class_names(other) or []
        if len(names) == num_classes:
            source, expected = f"dataset {other!r}", names
            break
    if classes != expected:
        raise ValueError(
            "all datasets must have the same classes in the same order: dataset "
            f"{name!r} has {classes}, and {source} has {expected}"
        )


def _class_names(name: str) -> list[str] | None:
    """The class names of a dataset; None if it has none or cannot be read."""
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        with contextlib.suppress(ValueError):
            _read_registered(name, training=True)  # which sets them
    names = metadata.get("thing_classes")
    return names and list(map(str, names))


def _warn_crowds_only(dicts: list[DatasetDict], name: str) -> None:
    annotations = [annotation for x in dicts for annotation in x.get("annotations", [])]
    objects = {a["category_id"] for a in annotations if not a.get("iscrowd", 0)}
    crowds = {a["category_id"] for a in annotations} - objects
    if crowds:
        names = [MetadataCatalog.get(name).thing_classes[i] for i in sorted(crowds)]
        logger.warning(
            f"dataset {name!r} has only crowd regions (iscrowd 1) of {names}: they cannot be "
            "trained on, and their AP is NaN"
        )
