import os

from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Instances

from .coco import InstanceCOCOEvaluator


class MaskScoreCOCOEvaluator(DatasetEvaluators):
    """COCO's evaluation of YOLACT++, in which boxes are ranked by `scores` and masks by
    `mask_scores` (arXiv 1912.06218, section 5.1).

    One :class:`InstanceCOCOEvaluator` ranks boxes and masks by the same `scores`; this one combines
    two of them.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, **kwargs):
        """
        Args:
            dataset_name, kwargs: see :class:`COCOEvaluator`.
            output_dir: the results are written to its folders "bbox" and "segm".
        """
        self.boxes, self.masks = (
            InstanceCOCOEvaluator(
                dataset_name,
                tasks=(task,),
                output_dir=os.path.join(output_dir, task) if output_dir else None,
                **kwargs,
            )
            for task in ("bbox", "segm")
        )
        super().__init__([self.boxes, self.masks])

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs, outputs: of the model; see :meth:`COCOEvaluator.process`.

        Raises:
            ValueError: if the instances have no `mask_scores`.
        """
        instances = [output["instances"] for output in outputs]
        if not all(x.has("mask_scores") and x.has("pred_masks") for x in instances):
            raise ValueError(
                "the model gives no mask_scores (MODEL.YOLACT.MASK_IOU.ENABLED): evaluate it with "
                "COCOEvaluator"
            )
        self.boxes.process(inputs, [{"instances": _without_masks(x)} for x in instances])
        self.masks.process(inputs, [{"instances": _ranked_by_mask_scores(x)} for x in instances])


def _without_masks(instances: Instances) -> Instances:
    # Encoding masks takes most of the time of an evaluation.
    kept = Instances(instances.image_size, **instances.get_fields())
    kept.remove("pred_masks")
    return kept


def _ranked_by_mask_scores(instances: Instances) -> Instances:
    ranked = Instances(instances.image_size, **instances.get_fields())
    ranked.scores = ranked.mask_scores
    return ranked
