"""Predictions in COCO's results format."""

import os
from typing import Any

from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from .sources import Frame


def coco_results(frame: Frame, instances: Instances, metadata: Metadata) -> list[dict[str, Any]]:
    """The predictions for a frame in the format that pycocotools' `loadRes` reads.

    Args:
        instances: on the CPU.
        metadata: see :func:`class_metadata`.

    Returns:
        one dict for each object: "image_id", "category_id", "bbox" (XYWH, pixels), "score",
        "segmentation" (RLE), and also "file_name" and, if it is known, "category_name".
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
