"""Predictions on pictures, videos and cameras: found, drawn and written."""

from .predictor import Predictor
from .results import write_results
from .run import annotate, open_output
from .sources import ImageFiles, Video, find_images

__all__ = [
    "ImageFiles",
    "Predictor",
    "Video",
    "annotate",
    "find_images",
    "open_output",
    "write_results",
]
