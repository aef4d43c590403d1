"""What an exported file says about itself."""

import json

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
    """
    model, metadata = graph.model, metadata or Metadata()
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    values = {
        "class_names": list(metadata.get("thing_classes", [])),
        "category_ids": sorted(ids, key=ids.get),
        # (height, width) of the network input, into which a YOLACT stretches images. EmbedMask's
        # keep their aspect ratio and are padded with the mean.
        "input_size": list(graph.input_size),
        "keep_aspect_ratio": not isinstance(model, YOLACT),
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "score_threshold": model.test_score_thresh,
        "nms_threshold": model.test_nms_thresh,  # type: ignore[attr-defined]
        "mask_threshold": graph.mask_threshold,
        "versions": {
            "yolact_d2": __version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
        },
    }
    texts = {
        "model": type(model).__name__,
        "outputs": graph.outputs,
        "image": graph.image,
        "channels": model.input_format,
    }
    return {**texts, **{key: json.dumps(value) for key, value in values.items()}}
