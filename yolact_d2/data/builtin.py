"""The datasets that this project adds to Detectron2's, under the same DETECTRON2_DATASETS."""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_json import read_coco, to_dataset_dicts
from .shapes import HARD, register_shapes

PASCAL_CLASSES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
).split(", ")
_PASCAL_IDS = {i + 1: i for i in range(len(PASCAL_CLASSES))}


def load_pascal_sbd(json_file: str, image_root: str) -> list[dict[str, Any]]:
    """Detectron2's ``load_coco_json`` for the JSON of the authors' script, in which categories have
    no names."""
    return to_dataset_dicts(read_coco(json_file), image_root, _PASCAL_IDS)


def register_pascal_sbd(root: str) -> None:
    """Register Pascal SBD, converted to COCO's format as the authors' script does it:
    `root`/img and `root`/pascal_sbd_{train,val}.json, categories 1 to 20 in alphabetical order."""
    image_root = os.path.join(root, "img")
    for split in ("train", "val"):
        name = f"pascal_sbd_{split}"
        json_file = os.path.join(root, f"{name}.json")
        DatasetCatalog.register(name, lambda path=json_file: load_pascal_sbd(path, image_root))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            thing_classes=PASCAL_CLASSES,
            thing_dataset_id_to_contiguous_id=_PASCAL_IDS,
        )


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_pascal_sbd(os.path.join(_root, "sbd"))
register_shapes(os.path.join(_root, "shapes"))
register_shapes(os.path.join(_root, "shapes_hard"), "shapes_hard", HARD)
