"""Names and category ids of a model's classes."""

from collections.abc import Sequence
from numbers import Integral

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from ..config import model_node


def class_metadata(cfg: CfgNode) -> Metadata:
    """The class names and category ids of a model, as Detectron2's visualizers expect them.

    Args:
        cfg: CLASS_NAMES and CATEGORY_IDS of the model are used. Where they are empty, the first
            dataset in DATASETS.TEST and DATASETS.TRAIN with as many classes as the model is.

    Returns:
        metadata with `thing_classes` (missing if the names are unknown) and
        `thing_dataset_id_to_contiguous_id` (ids 1, 2, ... if they are unknown).

    Raises:
        ValueError: if the number of names or ids is not NUM_CLASSES.
    """
    name = model_node(cfg)
    node = cfg.MODEL[name]
    for key in ("CLASS_NAMES", "CATEGORY_IDS"):
        if node[key] and len(node[key]) != node.NUM_CLASSES:
            raise ValueError(
                f"MODEL.{name}.{key} has {len(node[key])} entries, but MODEL.{name}.NUM_CLASSES "
                f"is {node.NUM_CLASSES}"
            )
    names = list(node.CLASS_NAMES)
    ids = {category: i for i, category in enumerate(node.CATEGORY_IDS)}
    if not names:
        names, dataset_ids = _dataset_classes(cfg)
        ids = ids or dataset_ids
    metadata = Metadata()
    metadata.thing_dataset_id_to_contiguous_id = ids or {i + 1: i for i in range(node.NUM_CLASSES)}
    if names:
        metadata.thing_classes = names
    return metadata


def find_classes(classes: Sequence[str | int], metadata: Metadata, num_classes: int) -> list[int]:
    """The numbers, from 0, of classes of a model.

    Args:
        classes: names or numbers. A number may be text if the model's class names are unknown.
        metadata: see :func:`class_metadata`.

    Raises:
        ValueError: listing the model's classes, if it has no such class.
    """
    names = metadata.get("thing_classes")
    known = list(map(str, names or range(num_classes)))
    numbers = []
    for wanted in [classes] if isinstance(classes, (str, Integral)) else classes:
        found = [i for i in range(num_classes) if wanted in (known[i], i)]
        if not found:
            kind = "classes" if names else "class names are unknown, and its numbers"
            raise ValueError(f"no class {wanted!r}: the model's {kind} are {', '.join(known)}")
        numbers += found
    if not numbers:
        raise ValueError("the list of classes is empty")
    return numbers


def _dataset_classes(cfg: CfgNode) -> tuple[list[str], dict[int, int]]:
    """Class names and ids of the first dataset with the right number of classes, or nothing."""
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if dataset not in MetadataCatalog.list():  # `get` would create it
            continue
        metadata = MetadataCatalog.get(dataset)
        names = list(metadata.get("thing_classes", []))
        if len(names) == cfg.MODEL[model_node(cfg)].NUM_CLASSES:
            return names, dict(metadata.get("thing_dataset_id_to_contiguous_id", {}))
    return [], {}
