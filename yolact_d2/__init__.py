"""YOLACT and EmbedMask for Detectron2. Importing it registers the models and the datasets."""

from . import data, model_zoo, modeling  # noqa: F401
from .config import add_yolact_config, load_config
from .inference import Predictor
from .optimization import optimize_for_inference

__version__ = "0.2.0"

__all__ = [
    "Predictor",
    "add_yolact_config",
    "load_config",
    "model_zoo",
    "optimize_for_inference",
]
