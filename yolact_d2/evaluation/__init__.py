from .build import build_evaluator
from .coco import FilteredCOCOEvaluator
from .mask_scores import MaskScoreCOCOEvaluator

__all__ = ["FilteredCOCOEvaluator", "MaskScoreCOCOEvaluator", "build_evaluator"]
