"""One's own COCO JSON files as data sets, without writing Python."""

from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .coco_json import read_checked_coco

TRAIN_NAME, VAL_NAME = "own_train", "own_val"


class COCODataset(NamedTuple):
    """A data set of one's own."""

    json_file: str
    image_root: str
    """The folder that the file names in the JSON are relative to."""


def use_coco_datasets(
    cfg: CfgNode,
    train: COCODataset | None,
    val: COCODataset | None,
    *,
    trained_with: CfgNode | None = None,
) -> None:
    """Register one's own data, and set up a config for it, in place.

    Sets DATASETS.TRAIN and DATASETS.TEST, and MODEL.YOLACT.NUM_CLASSES, CLASS_NAMES and
    CATEGORY_IDS from the file. Every process must call it.

    Args:
        train: to train on. None leaves DATASETS.TRAIN as it is.
        val: to evaluate on. None: DATASETS.TEST becomes empty.
        trained_with: the config of the model that the run goes on with; the classes that it names
            must be the file's.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    files = {own.json_file: read_checked_coco(own.json_file) for own in (train, val) if own}
    categories = {path: _categories(path, coco) for path, coco in files.items()}
    if train and val:
        _check_equal(
            train.json_file, categories[train.json_file], val.json_file, categories[val.json_file]
        )
    path, found = next(iter(categories.items()))
    ids = sorted(found)  # as Detectron2 numbers them
    names = [found[i] for i in ids]
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
    if train:
        if not any(a.get("iscrowd", 0) == 0 for a in files[train.json_file]["annotations"]):
            raise ValueError(f"{train.json_file} has no objects to train on")
        _register(TRAIN_NAME, train)
        cfg.DATASETS.TRAIN = (TRAIN_NAME,)
    if val:
        _register(VAL_NAME, val)
        cfg.DATASETS.TEST = (VAL_NAME,)


def _register(name: str, own: COCODataset) -> None:
    if name in DatasetCatalog:  # of an earlier run in this process
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, own.json_file, own.image_root)


def _categories(path: str, coco: dict[str, Any]) -> dict[int, str]:
    """Names by id."""
    categories = {category["id"]: category["name"] for category in coco["categories"]}
    for key, name in categories.items():
        if type(key) is not int or not isinstance(name, str):
            raise ValueError(f"{path}: the category {key!r}, {name!r} is not a number and a name")
    return categories


def _check_equal(first: str, ours: dict[int, str], second: str, theirs: dict[int, str]) -> None:
    differences = [
        f"only in {path}: " + ", ".join(f"{key} ({name})" for key, name in sorted(only))
        for path, only in (
            (first, ours.items() - theirs.items()),
            (second, theirs.items() - ours.items()),
        )
        if only
    ]
    if differences:
        raise ValueError(f"the categories differ; {'; '.join(differences)}")
