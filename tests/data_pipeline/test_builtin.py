"""The datasets that importing the package registers."""

import json
import os

from coco_examples import annotation, coco_json
from detectron2.data import DatasetCatalog, MetadataCatalog

from yolact_d2.data import builtin

PASCAL_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
SHAPE_CLASSES = ["circle", "rectangle", "triangle", "star"]


def test_metadata():
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for split in ("train", "val"):
        pascal, shapes = (MetadataCatalog.get(f"{x}_{split}") for x in ("pascal_sbd", "shapes"))
        assert {pascal.name, shapes.name} <= set(DatasetCatalog.list())
        assert list(pascal.thing_classes) == PASCAL_CLASSES
        assert list(shapes.thing_classes) == SHAPE_CLASSES
        assert pascal.evaluator_type == shapes.evaluator_type == "coco"
        assert pascal.json_file == os.path.join(root, "sbd", f"pascal_sbd_{split}.json")
        assert pascal.image_root == os.path.join(root, "sbd", "img")
        assert shapes.json_file == f"{root}/shapes/annotations/instances_{split}.json"
        assert shapes.image_root == os.path.join(root, "shapes", split)
    hard = MetadataCatalog.get("shapes_hard_test")
    assert hard.thing_classes == [*SHAPE_CLASSES, "cross", "arrow", "crescent", "half disc"]
    assert hard.json_file == f"{root}/shapes_hard/annotations/instances_test.json"


def test_pascal_json_of_the_authors_script(tmp_path):
    """Its categories have ids and no names, its classes count from 1."""
    coco = coco_json([annotation(category_id=20)])
    coco["categories"] = [{"id": i + 1} for i in range(20)]
    json_file = tmp_path / "pascal_sbd_val.json"
    json_file.write_text(json.dumps(coco))
    (record,) = builtin.load_pascal_sbd(str(json_file), str(tmp_path / "img"))
    assert record["annotations"][0]["category_id"] == PASCAL_CLASSES.index("tvmonitor")
    assert record["file_name"] == str(tmp_path / "img" / "1.png")
