from .mask_scores import MaskScoreCOCOEvaluator

__all__ = ["MaskScoreCOCOEvaluator"]
