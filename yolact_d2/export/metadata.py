"""What an exported file says about itself."""

import json
from typing import Any

import detectron2
import torch
from detectron2.data.catalog import Metadata

from .. import __version__
from ..modeling import YOLACT
from .graph import ModelGraph


def describe_graph(graph: ModelGraph, metadata: Metadata | None) -> dict[str, str]:
    """The metadata of an exported file, see docs/deployment.md. Lists and numbers are JSON.

    Args:
        metadata: class names and category ids, see :func:`class_metadata`.

    Raises:
        ValueError: if their number is not that of the model's classes.
    """
    model, metadata = graph.model, metadata or Metadata()
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    classes: dict[str, Any] = {
        "class_names": list(metadata.get("thing_classes", [])),
        "category_ids": sorted(ids, key=ids.get),
    }
    for key, entries in classes.items():
        if entries and len(entries) != graph.num_classes:
            raise ValueError(
                f"metadata has {len(entries)} {key.replace('_', ' ')}, but the model has "
                f"{graph.num_classes} classes"
            )
    values = {
        **classes,
        # (height, width) of the network input. YOLACT stretches images to it; EmbedMask keeps
        # their aspect ratio and pads with the mean.
        "input_size": list(graph.input_size),
        "keep_aspect_ratio": not isinstance(model, YOLACT),
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "score_threshold": model.test_score_thresh,
        "nms_threshold": model.test_nms_thresh,  # type: ignore[attr-defined]
        "mask_threshold": graph.mask_threshold,
        "max_detections": model.max_detections_per_image,
        "versions": {
            "yolact_d2": __version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
        },
    }
    if isinstance(model, YOLACT):  # what NMS of the outputs "raw" needs
        values["anchor_score_threshold"] = model.test_anchor_score_thresh
        values["topk_candidates"] = model.test_topk_candidates
    texts = {
        "model": type(model).__name__,
        "outputs": graph.outputs,
        "image": graph.image,
        "channels": model.input_format,
    }
    return {**texts, **{key: json.dumps(value) for key, value in values.items()}}
