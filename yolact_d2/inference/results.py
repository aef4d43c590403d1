"""Predictions as a JSON file in COCO's format for results."""

import json
import os
from typing import Any

from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ..files import atomic_write
from .sources import Frame


def coco_results(frame: Frame, instances: Instances, metadata: Metadata) -> list[dict[str, Any]]:
    """One dict for each object, as pycocotools' `loadRes` takes them.

    Args:
        frame: the image that they were found in.
        instances: on the CPU.
        metadata: see :func:`class_metadata`.

    Returns:
        dicts of "image_id", "category_id", "bbox" (XYWH, pixels), "score" and "segmentation" (RLE),
        and besides "file_name" and, if it is known, "category_name".
    """
    category_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    names = metadata.get("thing_classes")
    results = instances_to_coco_json(instances, frame.image_id)
    for result in results:
        index = result["category_id"]
        result["category_id"] = category_ids[index]
        result["file_name"] = os.path.basename(frame.name)
        if names is not None:
            result["category_name"] = names[index]
    return results


def write_results(path: str, results: list[dict[str, Any]]) -> None:
    """Write all results at once."""
    with atomic_write(path) as partial, open(partial, "w") as file:
        json.dump(results, file)
