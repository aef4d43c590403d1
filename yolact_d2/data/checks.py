"""Checks of registered datasets before a run starts."""

from collections.abc import Callable

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from .coco_json import read_coco, validate_coco
from .dataset_dicts import DatasetDict, Read, image_issues, validate_dicts, warn_dropped
from .images import UnreadableImage
from .issues import raise_fatal

CUSTOM_TRAIN, CUSTOM_VAL = "custom_train", "custom_val"

# Checked training data for the loader, with the function it was registered with.
_checked: dict[str, tuple[Callable, list[DatasetDict]]] = {}


def check_datasets(cfg, key: str) -> None:
    """Check datasets against their image files and against the model.

    With DATASETS.CHECK_IMAGES this reads the header of every image, which takes some seconds for a
    hundred thousand.

    Args:
        cfg: DATASETS, and MODEL.YOLACT.NUM_CLASSES.
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
    try:
        dicts = DatasetCatalog.get(name)
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
    if not dicts:
        raise ValueError(f"dataset {name!r} has no images")
    classes = MetadataCatalog.get(name).get("thing_classes")
    num_classes = cfg.MODEL.YOLACT.NUM_CLASSES
    if classes is None:
        raise ValueError(f"dataset {name!r} has no category names: set its metadata thing_classes")
    if len(classes) != num_classes:
        raise ValueError(
            f"dataset {name!r} has {len(classes)} categories, but MODEL.YOLACT.NUM_CLASSES is "
            f"{num_classes}: set it to {len(classes)}"
        )
    try:
        usable, issues = validate_dicts(dicts, num_classes)
    except UnreadableImage as error:
        raise ValueError(f"dataset {name!r}: {error}") from error
    raise_fatal(issues, f"dataset {name!r}")
    if training:
        warn_dropped(issues)
    return usable
