"""The datasets that this project adds to Detectron2's, under the same DETECTRON2_DATASETS."""

import os
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .shapes import register_shapes

PASCAL_CLASSES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
).split(", ")


def _load_pascal_sbd(json_file: str, image_root: str) -> list[dict[str, Any]]:
    # Without a dataset name, for then Detectron2 would read names of categories, and the JSON of
    # the authors' script has none.
    dicts = load_coco_json(json_file, image_root)
    for record in dicts:
        for annotation in record["annotations"]:
            annotation["category_id"] -= 1
    return dicts


def register_pascal_sbd(root: str) -> None:
    """Register Pascal SBD, converted to COCO's format as the authors' script does it:
    `root`/img and `root`/pascal_sbd_{train,val}.json, categories 1 to 20 in alphabetical order."""
    for split in ("train", "val"):
        name = f"pascal_sbd_{split}"
        json_file = os.path.join(root, f"{name}.json")
        image_root = os.path.join(root, "img")
        DatasetCatalog.register(name, partial(_load_pascal_sbd, json_file, image_root))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            thing_classes=PASCAL_CLASSES,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(PASCAL_CLASSES))},
        )


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_pascal_sbd(os.path.join(_root, "sbd"))
register_shapes(os.path.join(_root, "shapes"))
