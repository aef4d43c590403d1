"""What training sees: images and ground truth after augmentation."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.visualizer import Visualizer

from ..data.dataset_mapper import YOLACTDatasetMapper

Record = dict[str, Any]


def augmented_samples(
    cfg,
    images: Sequence[Record],
    annotations: Sequence[Record],
    categories: Sequence[Record],
    image_root: str,
    num_samples: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Draw images evenly picked from a COCO dataset as the mapper gives them to the model.

    Args:
        cfg: a config of this project.
        images: the ones to pick from.
        annotations: those that belong to other images are not looked at.
        categories: of the annotations.
        image_root: the folder of the images.
        num_samples: how many to pick; all of them if there are fewer.

    Returns:
        pairs of file name, as the JSON has it, and drawing, (H, W, 3) uint8, RGB.
    """
    every = max(len(images) / num_samples, 1)
    picked = [images[int(i * every)] for i in range(min(num_samples, len(images)))]
    ids = {image["id"] for image in picked}
    coco = {
        "images": picked,
        "annotations": [a for a in annotations if a["image_id"] in ids],
        "categories": list(categories),
    }
    names = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    mapper = YOLACTDatasetMapper(cfg)
    for record in _load(coco, image_root):
        drawing = _draw(mapper(record), names, cfg.INPUT.FORMAT)
        yield os.path.relpath(record["file_name"], image_root), drawing


def _load(coco: dict[str, list[Record]], image_root: str) -> list[Record]:
    """The dataset dicts, as Detectron2 reads them; classes are numbered in the order of ids."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "samples.json")
        with open(path, "w") as file:
            json.dump(coco, file)
        records = load_coco_json(path, image_root)
    numbers = {i: n for n, i in enumerate(sorted(c["id"] for c in coco["categories"]))}
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = numbers[annotation["category_id"]]
    return records


def _draw(sample: Record, names: Sequence[str], image_format: str) -> np.ndarray:
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0).clamp(0, 255), image_format)
    objects = sample["instances"]
    labels = [
        f"{names[i]} (crowd)" if crowd else names[i]
        for i, crowd in zip(objects.gt_classes.tolist(), objects.gt_iscrowd.tolist())
    ]
    drawing = Visualizer(image).overlay_instances(
        boxes=objects.gt_boxes, labels=labels, masks=objects.gt_masks.tensor.numpy()
    )
    return drawing.get_image()
