"""What the classes of a model are called."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata


def class_metadata(cfg: CfgNode) -> Metadata:
    """What Detectron2's visualizers need to know about a model's classes.

    Args:
        cfg: names come from MODEL.YOLACT.CLASS_NAMES or, where it is empty, from the first dataset
            in DATASETS.TEST and DATASETS.TRAIN that has as many classes as the model.

    Returns:
        metadata of no dataset, with `thing_classes` and `thing_dataset_id_to_contiguous_id`. Where
        nothing is known, the first is missing, and the second gives the ids 1, 2, ...

    Raises:
        ValueError: if the config names another number of classes than the model has.
    """
    yolact = cfg.MODEL.YOLACT
    for key in ("CLASS_NAMES", "CATEGORY_IDS"):
        if yolact[key] and len(yolact[key]) != yolact.NUM_CLASSES:
            raise ValueError(
                f"MODEL.YOLACT.{key} has {len(yolact[key])} entries, but MODEL.YOLACT.NUM_CLASSES "
                f"is {yolact.NUM_CLASSES}"
            )
    names = list(yolact.CLASS_NAMES)
    ids = {category: i for i, category in enumerate(yolact.CATEGORY_IDS)}
    if not names:
        names, dataset_ids = _of_datasets(cfg)
        ids = ids or dataset_ids
    metadata = Metadata()
    metadata.thing_dataset_id_to_contiguous_id = ids or {
        i + 1: i for i in range(yolact.NUM_CLASSES)
    }
    if names:
        metadata.thing_classes = names
    return metadata


def _of_datasets(cfg: CfgNode):
    """Names, and ids to classes, of the first dataset that fits; empty if there is none."""
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        # Asking for a dataset that nobody registered would make its metadata.
        if dataset not in MetadataCatalog.list():
            continue
        metadata = MetadataCatalog.get(dataset)
        names = list(metadata.get("thing_classes", []))
        if len(names) == cfg.MODEL.YOLACT.NUM_CLASSES:
            return names, dict(metadata.get("thing_dataset_id_to_contiguous_id", {}))
    return [], {}
