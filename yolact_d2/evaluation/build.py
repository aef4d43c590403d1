import os

from detectron2.evaluation import DatasetEvaluator

from .coco import InstanceCOCOEvaluator
from .mask_scores import MaskScoreCOCOEvaluator


def build_evaluator(cfg, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """COCO's evaluation of boxes and masks for a config of this project.

    Args:
        output_folder: for the results. None: OUTPUT_DIR/inference.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    masks_have_scores = cfg.MODEL.YOLACT.MASK_IOU.ENABLED
    return (MaskScoreCOCOEvaluator if masks_have_scores else InstanceCOCOEvaluator)(
        dataset_name,
        output_dir=output_folder,
        # COCO's AP counts 100 detections of an image, however few the model may give.
        max_dets_per_image=max(100, cfg.TEST.DETECTIONS_PER_IMAGE),
    )
