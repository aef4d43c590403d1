"""Predictions on images, videos and cameras."""

from .outputs import WindowClosed, Writer, open_output
from .pipeline import get_draw_function, predict_and_draw
from .predictor import Predictor, drawing_threshold
from .results import coco_results
from .sources import ImageFiles, Video, find_images

__all__ = [
    "ImageFiles",
    "Predictor",
    "Video",
    "WindowClosed",
    "Writer",
    "coco_results",
    "drawing_threshold",
    "get_draw_function",
    "find_images",
    "open_output",
    "predict_and_draw",
]
