import importlib.util
import os

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator

from .coco import InstanceCOCOEvaluator
from .mask_scores import MaskScoreCOCOEvaluator


def build_evaluator(cfg, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator of a dataset for a config of this project, by its :func:`evaluator_type`.

    Args:
        output_folder: for the results. None: OUTPUT_DIR/inference.
    """
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    kind = evaluator_type(dataset_name)
    if kind == "lvis":
        return LVISEvaluator(dataset_name, output_dir=output_folder)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    masks_have_scores = cfg.MODEL.YOLACT.MASK_IOU.ENABLED
    return (MaskScoreCOCOEvaluator if masks_have_scores else InstanceCOCOEvaluator)(
        dataset_name,
        output_dir=output_folder,
        # COCO's AP counts 100 detections of an image, however few the model may give.
        max_dets_per_image=max(100, cfg.TEST.DETECTIONS_PER_IMAGE),
    )


def evaluator_type(dataset_name: str) -> str:
    """How a dataset is evaluated, from its metadata `evaluator_type`: "coco", the default (AP of
    boxes and masks), "lvis" (the same by LVIS's rules) or "pascal_voc" (AP of boxes).

    Raises:
        ValueError: if there is no evaluator for it, or a package is missing.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if kind not in ("coco", "lvis", "pascal_voc"):
        raise ValueError(
            f"dataset {dataset_name!r} has the evaluator_type {kind!r}, not one of: coco, lvis, "
            "pascal_voc. A subclass of Trainer can give it another evaluator in build_evaluator"
        )
    if kind == "lvis" and importlib.util.find_spec("lvis") is None:
        raise ValueError(f"dataset {dataset_name!r} is evaluated by LVIS's rules: pip install lvis")
    return kind
