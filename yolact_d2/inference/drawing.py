"""Predictions on pictures and videos, by Detectron2's visualizers."""

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer


def draw_picture(image: np.ndarray, instances: Instances, metadata: Metadata) -> np.ndarray:
    """A copy of an image with masks, boxes, names and scores on it.

    Args:
        image: (H, W, 3) uint8, BGR.
        instances: of that image, on the CPU.
        metadata: see :func:`class_metadata`.
    """
    drawing = Visualizer(image[:, :, ::-1], metadata).draw_instance_predictions(instances)
    return np.ascontiguousarray(drawing.get_image()[:, :, ::-1])


class VideoArtist:
    """Draws frame after frame of one video; an object keeps its colour while it can be followed."""

    def __init__(self, metadata: Metadata):
        self.visualizer = VideoVisualizer(metadata)

    def __call__(self, image: np.ndarray, instances: Instances) -> np.ndarray:
        """See :func:`draw_picture`; frames must come in their order."""
        drawing = self.visualizer.draw_instance_predictions(image[:, :, ::-1], instances)
        return np.ascontiguousarray(drawing.get_image()[:, :, ::-1])
