import copy
import logging
from typing import Any, Dict, List

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances

from .augmentation import box_centers, build_augmentation, points_inside


class YOLACTDatasetMapper:
    """Map a dataset dict of Detectron2 into what :class:`YOLACT` is trained on.

    It differs from Detectron2's :class:`DatasetMapper` in that images are augmented as float32;
    crowd regions are kept, as `gt_iscrowd`; objects are dropped when their centre leaves the image
    or they become too small; and polygons and RLE may be mixed.
    """

    @configurable
    def __init__(
        self, *, augmentations: List[T.Augmentation], image_format: str, min_box_size: float
    ):
        """
        Args:
            augmentations: the last of them gives the images the model's size.
            image_format: see :func:`detection_utils.read_image`.
            min_box_size: objects not wider or not higher than this, in pixels, are dropped.
                (Without it the box loss reaches infinity.)
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.min_box_size = min_box_size
        logging.getLogger(__name__).info(f"Augmentations used in training: {augmentations}")

    @classmethod
    def from_config(cls, cfg):
        return {
            "augmentations": build_augmentation(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "min_box_size": cfg.INPUT.MIN_BOX_SIZE,
        }

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Args:
            dataset_dict: one image, in Detectron2's dataset format.

        Returns:
            the dict without "annotations" and with "image", (3, S, S) float32, and "instances",
            with `gt_boxes`, `gt_classes`, `gt_masks` (`BitMasks`) and `gt_iscrowd` (bool).
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        annotations = [float_annotation(a) for a in dataset_dict.pop("annotations", [])]
        if any("segmentation" not in a for a in annotations):
            raise ValueError(
                f"{dataset_dict['file_name']}: an object has no 'segmentation'; YOLACT needs masks"
            )

        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        aug_input = T.AugInput(image.astype(np.float32), boxes=boxes)
        aug_input.is_crowd = np.array([a.get("iscrowd", 0) == 1 for a in annotations], dtype=bool)
        transforms = self.augmentations(aug_input)

        dataset_dict["image"] = torch.as_tensor(
            np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        )
        # A patch clips what it cuts, so where the whole box has gone must be asked before.
        kept = points_inside(box_centers(aug_input.boxes), aug_input.image.shape[:2])
        instances = self._instances(
            [a for a, keep in zip(annotations, kept) if keep],
            transforms,
            aug_input.image.shape[:2],
        )
        dataset_dict["instances"] = instances[instances.gt_boxes.nonempty(self.min_box_size)]
        return dataset_dict

    @staticmethod
    def _instances(annotations, transforms, image_size) -> Instances:
        is_crowd = [a.get("iscrowd", 0) == 1 for a in annotations]
        annotations = [
            utils.transform_instance_annotations(a, transforms, image_size) for a in annotations
        ]
        instances = utils.annotations_to_instances(annotations, image_size, mask_format="bitmask")
        if not annotations:
            instances.gt_masks = BitMasks(torch.zeros(0, *image_size, dtype=torch.bool))
        instances.gt_iscrowd = torch.tensor(is_crowd, dtype=torch.bool)
        return instances


def float_annotation(annotation: Dict[str, Any]) -> Dict[str, Any]:
    """What YOLACT needs of an annotation, its box as XYXY.

    All numbers are made float64: transforms work in place, and would truncate integers.
    """
    kept = {k: annotation[k] for k in ("category_id", "segmentation", "iscrowd") if k in annotation}
    if isinstance(kept.get("segmentation"), list):
        kept["segmentation"] = [np.asarray(p, dtype=np.float64) for p in kept["segmentation"]]
    box = np.asarray(annotation["bbox"], dtype=np.float64)
    kept["bbox"] = BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]
    kept["bbox_mode"] = BoxMode.XYXY_ABS
    return kept
