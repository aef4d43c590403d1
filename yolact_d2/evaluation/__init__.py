from .build import build_evaluator
from .coco import UsableCOCOEvaluator
from .mask_scores import MaskScoreCOCOEvaluator

__all__ = ["MaskScoreCOCOEvaluator", "UsableCOCOEvaluator", "build_evaluator"]
