"""Predictions on pictures, videos and cameras: found, drawn and written."""

from .predictor import Predictor
from .results import write_results
from .run import annotate, open_output
from .sources import Pictures, Video, find_pictures

__all__ = [
    "Pictures",
    "Predictor",
    "Video",
    "annotate",
    "find_pictures",
    "open_output",
    "write_results",
]
