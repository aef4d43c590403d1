"""The datasets that this project adds to Detectron2's, under the same DETECTRON2_DATASETS."""

import os

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from .shapes import register_shapes

PASCAL_CLASSES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
).split(", ")


def register_pascal_sbd(root: str) -> None:
    """Register Pascal SBD, converted to COCO's format as the authors' script does it:
    `root`/img and `root`/pascal_sbd_{train,val}.json."""
    for split in ("train", "val"):
        name = f"pascal_sbd_{split}"
        json_file = os.path.join(root, f"{name}.json")
        register_coco_instances(name, {}, json_file, os.path.join(root, "img"))
        MetadataCatalog.get(name).thing_classes = PASCAL_CLASSES


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_pascal_sbd(os.path.join(_root, "sbd"))
register_shapes(os.path.join(_root, "shapes"))
