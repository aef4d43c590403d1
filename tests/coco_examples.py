"""Small datasets of rectangles (x, y, w, h): masks, COCO records, files, and their registration."""

import json

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools import mask as mask_util

NAME, CLASSES = "example_dataset", ["cat", "Jagdhündin"]
WIDTH, HEIGHT = 40, 30
BOX = [5, 4, 10, 8]


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def rectangle(x, y, w, h, size=(WIDTH, HEIGHT)):
    """A mask, as far as it is inside the image."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    return mask


def rle(mask, compressed=True):
    if compressed:
        encoded = mask_util.encode(np.asfortranarray(mask))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def annotation(box=BOX, **changes):
    """The record of an object that fills its box."""
    record = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": box}
    return {**record, "area": box[2] * box[3], "segmentation": [polygon(*box)], **changes}


def write_image(path, size=(WIDTH, HEIGHT), color=0):
    Image.new("RGB", size, color).save(path)
    return str(path)


def coco_json(annotations=(), num_images=1, **changes):
    """A COCO JSON of the images 1.png, 2.png, ...; `changes` are to the record of the last one."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(1, num_images + 1)
    ]
    if images:
        images[-1].update(changes)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": [*annotations], "categories": categories}


def _forget(name):
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def register_dicts(*dicts, classes=CLASSES, name=NAME):
    """Register dataset dicts in place of a dataset of the same name."""
    _forget(name)
    DatasetCatalog.register(name, lambda: [*dicts])
    if classes:
        MetadataCatalog.get(name).thing_classes = classes


def register_json(folder, coco, encoding="utf-8"):
    """Register a COCO JSON, as coco.json in the folder of its images."""
    _forget(NAME)
    path = folder / "coco.json"
    path.write_text(json.dumps(coco, ensure_ascii=False), encoding=encoding)
    register_coco_instances(NAME, {}, str(path), str(folder))
    return path
