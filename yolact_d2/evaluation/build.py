import os

from detectron2.evaluation import DatasetEvaluator

from .coco import FilteredCOCOEvaluator
from .mask_scores import MaskScoreCOCOEvaluator


def build_evaluator(cfg, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """COCO's evaluation of boxes and masks for a config of this project.

    Args:
        output_folder: for the results. None: OUTPUT_DIR/inference.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    if cfg.MODEL.YOLACT.MASK_IOU.ENABLED:
        return MaskScoreCOCOEvaluator(dataset_name, output_dir=output_folder)
    return FilteredCOCOEvaluator(dataset_name, output_dir=output_folder)
