"""What training sees: images and ground truth after augmentation."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.visualizer import Visualizer

from ..data.coco_json import class_numbers, to_dataset_dicts
from ..data.dataset_mapper import YOLACTDatasetMapper
from .labels import drawable_names, get_image

Record = dict[str, Any]


def augmented_samples(
    cfg,
    images: Sequence[Record],
    annotations: Sequence[Record],
    categories: Sequence[Record],
    image_root: str,
    num_samples: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Draw images of a COCO dataset, evenly spread over it, as the mapper gives them to the model.

    Args:
        cfg: for the augmentation.
        images: to pick from.
        annotations: usable ones; those of other images are ignored.
        categories: of the annotations.
        image_root: the folder of the images.
        num_samples: how many images to pick, at most.

    Yields:
        the file name, as the JSON has it, and the drawing, (H, W, 3) uint8, RGB.
    """
    every = max(len(images) / num_samples, 1)
    picked = [images[int(i * every)] for i in range(min(num_samples, len(images)))]
    ids = {image["id"] for image in picked}
    coco = {"images": picked, "annotations": [a for a in annotations if a["image_id"] in ids]}
    names = drawable_names(tuple(c["name"] for c in sorted(categories, key=lambda c: c["id"])))
    mapper = YOLACTDatasetMapper(cfg)
    for record in to_dataset_dicts(coco, image_root, class_numbers(categories)):
        drawing = _draw(mapper(record), names, cfg.INPUT.FORMAT)
        yield os.path.relpath(record["file_name"], image_root), drawing


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
    return get_image(drawing)
