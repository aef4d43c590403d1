"""Predictions in COCO's results format."""

import os
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from .sources import Frame


def coco_results(
    frame: Frame, instances: Instances, metadata: Metadata, polygons: bool = False
) -> list[dict[str, Any]]:
    """The predictions for a frame in the format that pycocotools' `loadRes` reads.

    Args:
        instances: on the CPU.
        metadata: see :func:`class_metadata`.
        polygons: write masks as polygons, see :func:`mask_to_polygons`. Objects with
            empty masks are left out.

    Returns:
        one dict for each object: "image_id", "category_id", "bbox" (XYWH, pixels), "score",
        "segmentation" (RLE or polygons), and also "file_name" and, if it is known, "category_name".
    """
    if polygons:
        instances = instances[instances.pred_masks.flatten(1).any(dim=1)]
    category_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    names = metadata.get("thing_classes")
    results = instances_to_coco_json(instances, frame.image_id)
    for i, result in enumerate(results):
        index = result["category_id"]
        result["category_id"] = category_ids[index]
        result["file_name"] = os.path.basename(frame.name)
        if names is not None:
            result["category_name"] = names[index]
        if polygons:
            result["segmentation"] = mask_to_polygons(instances.pred_masks[i].numpy())
    return results


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """The outlines of a mask along the edges of its pixels, so that no pixel is lost.

    COCO's polygons have no holes: a part with holes is split by vertical cuts through them.

    Args:
        mask: (H, W) bool.

    Returns:
        polygons [x1, y1, x2, y2, ...] of 4 points or more, in pixels.
    """
    x0, y0, width, height = cv2.boundingRect(mask.astype(np.uint8))
    cropped = mask[y0 : y0 + height, x0 : x0 + width].astype(np.uint8)
    polygons = _outlines(cropped) if cropped.size else []
    return [(polygon + (x0, y0)).ravel().tolist() for polygon in polygons]


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons (N, 2) of a mask (H, W)."""
    # OpenCV's contours go through the centres of pixels. With each pixel doubled, these are in the
    # first or second half of a pixel, and are moved to its edge there.
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    edges = [(contour[:, 0] + 1) // 2 for contour in contours]
    edges = [edge[(edge != np.roll(edge, 1, axis=0)).any(axis=1)] for edge in edges]
    holes = [edge for edge, (*_, parent) in zip(edges, tree[0]) if parent >= 0] if edges else []
    if not holes:
        return edges
    hole = holes[len(holes) // 2][:, 0]
    x = (hole.min() + hole.max()) // 2
    return [*_outlines(mask[:, :x]), *(part + (x, 0) for part in _outlines(mask[:, x:]))]
