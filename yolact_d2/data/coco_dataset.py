"""Training and evaluation on COCO JSON files, without registering datasets in Python."""

import contextlib
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .coco_json import COCO, class_numbers, read_coco, to_dataset_dicts, validate_coco
from .issues import raise_fatal

CUSTOM_TRAIN, CUSTOM_VAL = "custom_train", "custom_val"


class COCODataset(NamedTuple):
    json_file: str
    image_root: str
    """The folder that the file names in the JSON are relative to."""


class COCOSource:
    """What DatasetCatalog calls for the dicts of a :class:`COCODataset` that has been parsed.

    A training JSON is freed by the first call; later calls read the file again.
    """

    def __init__(self, data: COCODataset, coco: COCO, training: bool):
        self.data = data
        self.coco: COCO | None = coco
        self._training = training

    def __call__(self) -> list[dict[str, Any]]:
        coco = self.coco or read_coco(self.data.json_file)
        if self._training:
            self.coco = None
        return to_dataset_dicts(coco, self.data.image_root, class_numbers(coco["categories"]))


def use_coco_datasets(
    cfg: CfgNode,
    train: COCODataset | None,
    val: COCODataset | None,
    *,
    trained_with: CfgNode | None = None,
) -> None:
    """Register COCO JSON files as custom_train and custom_val, and set up a config for them.

    Sets DATASETS.TRAIN and DATASETS.TEST, and MODEL.YOLACT.NUM_CLASSES, CLASS_NAMES and
    CATEGORY_IDS, in place. Every process must call it. Each file is parsed once.

    Args:
        train: to train on. None: DATASETS.TRAIN stays as it is.
        val: to evaluate on. None: DATASETS.TEST becomes empty.
        trained_with: the config of a trained model, whose classes must be those of the files.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: naming the file and what is wrong with it.
    """
    paths = dict.fromkeys(data.json_file for data in (train, val) if data)  # may be one file
    files = {path: _read_valid(path) for path in paths}
    path, classes = next((path, _classes(coco)) for path, coco in files.items())
    for other, coco in files.items():
        ours, theirs = set(classes.items()), set(_classes(coco).items())
        if ours != theirs:
            raise ValueError(
                f"the categories differ; only in {path}: {sorted(ours - theirs)}; only in {other}: "
                f"{sorted(theirs - ours)}"
            )
    ids, names = list(classes), list(classes.values())
    if trained_with is not None:
        model = trained_with.MODEL.YOLACT
        other_names = model.CLASS_NAMES and list(model.CLASS_NAMES) != names
        other_ids = model.CATEGORY_IDS and list(model.CATEGORY_IDS) != ids
        if other_names or other_ids:
            raise ValueError(
                f"{path} has the classes {names} with the ids {ids}, but the model was trained on "
                f"{list(model.CLASS_NAMES)} with {list(model.CATEGORY_IDS)}"
            )
    yolact = cfg.MODEL.YOLACT
    yolact.NUM_CLASSES, yolact.CLASS_NAMES, yolact.CATEGORY_IDS = len(ids), names, ids

    cfg.DATASETS.TEST = ()
    for name in (CUSTOM_TRAIN, CUSTOM_VAL):  # of an earlier run in this process
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    if train:
        _register(CUSTOM_TRAIN, train, files[train.json_file], training=True)
        cfg.DATASETS.TRAIN = (CUSTOM_TRAIN,)
    if val:
        _register(CUSTOM_VAL, val, files[val.json_file], training=False)
        cfg.DATASETS.TEST = (CUSTOM_VAL,)


def _read_valid(path: str) -> COCO:
    coco = read_coco(path)
    raise_fatal(validate_coco(coco).issues, path)
    return coco


def use_own_reader(name: str, training: bool) -> None:
    """Replace the reader of a JSON that Detectron2's `register_coco_instances` has registered.

    Detectron2 reads text in the encoding of the locale, leaves numbers such as 1.0 as they are, and
    parses the file each time. A file that cannot be read is left to Detectron2.
    """
    if getattr(DatasetCatalog.data.get(name), "__module__", "") == load_coco_json.__module__:
        metadata = MetadataCatalog.get(name)
        with contextlib.suppress(OSError, ValueError):
            coco = read_coco(metadata.json_file)
            _register(name, COCODataset(metadata.json_file, metadata.image_root), coco, training)


def _register(name: str, data: COCODataset, coco: COCO, training: bool) -> None:
    DatasetCatalog[name] = COCOSource(data, coco, training)
    metadata = MetadataCatalog.get(name)
    values = {
        "json_file": data.json_file,
        "image_root": data.image_root,
        "evaluator_type": "coco",
        "thing_classes": list(_classes(coco).values()),
        "thing_dataset_id_to_contiguous_id": class_numbers(coco["categories"]),
    }
    metadata.set(**{k: v for k, v in values.items() if k not in metadata.as_dict()})


def _classes(coco: COCO) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    return dict(sorted((category["id"], category["name"]) for category in coco["categories"]))
