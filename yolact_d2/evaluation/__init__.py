from .build import build_evaluator, evaluator_type
from .coco import InstanceCOCOEvaluator
from .mask_scores import MaskScoreCOCOEvaluator

__all__ = [
    "InstanceCOCOEvaluator",
    "MaskScoreCOCOEvaluator",
    "build_evaluator",
    "evaluator_type",
]
