"""The datasets that importing the package registers."""

import json
import os
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from yolact_d2.data import builtin

PASCAL_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
SHAPE_CLASSES = ["circle", "rectangle", "triangle", "star"]

SHOW_METADATA = """
import json
from detectron2.data import MetadataCatalog
import yolact_d2
names = ["pascal_sbd_train", "pascal_sbd_val", "shapes_train", "shapes_val"]
metadata = [MetadataCatalog.get(name) for name in names]
print(json.dumps({m.name: [m.json_file, m.image_root] for m in metadata}))
"""


def test_metadata():
    for dataset, classes in (("pascal_sbd", PASCAL_CLASSES), ("shapes", SHAPE_CLASSES)):
        for split in ("train", "val"):
            assert f"{dataset}_{split}" in DatasetCatalog.list()
            metadata = MetadataCatalog.get(f"{dataset}_{split}")
            assert list(metadata.thing_classes) == classes
            assert metadata.evaluator_type == "coco"


@pytest.mark.slow
def test_folder_of_the_files():
    """DETECTRON2_DATASETS, in which "~" is the home directory, as for Detectron2's datasets."""
    environment = {**os.environ, "DETECTRON2_DATASETS": os.path.join("~", "some", "datasets")}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHOW_METADATA],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    root = os.path.join(os.path.expanduser("~"), "some", "datasets")
    expected = {}
    for split in ("train", "val"):
        sbd, shapes = os.path.join(root, "sbd"), os.path.join(root, "shapes")
        expected[f"pascal_sbd_{split}"] = [
            os.path.join(sbd, f"pascal_sbd_{split}.json"),
            os.path.join(sbd, "img"),
        ]
        expected[f"shapes_{split}"] = [
            os.path.join(shapes, "annotations", f"instances_{split}.json"),
            os.path.join(shapes, split),
        ]
    assert json.loads(output.splitlines()[-1]) == expected


def test_pascal_json_of_the_authors_script(tmp_path):
    """Its categories have ids and no names, its classes count from 1."""
    json_file = tmp_path / "pascal_sbd_val.json"
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 20,
        "bbox": [2, 3, 10, 9],
        "area": 90,
        "iscrowd": 0,
        "segmentation": [[2, 3, 12, 3, 12, 12, 2, 12]],
    }
    coco = {
        "images": [{"id": 1, "width": 20, "height": 15, "file_name": "a.jpg"}],
        "annotations": [annotation],
        "categories": [{"id": i + 1} for i in range(20)],
    }
    json_file.write_text(json.dumps(coco))
    (record,) = builtin.load_pascal_sbd(str(json_file), str(tmp_path / "img"))
    assert record["annotations"][0]["category_id"] == PASCAL_CLASSES.index("tvmonitor")
    assert record["file_name"] == str(tmp_path / "img" / "a.jpg")
