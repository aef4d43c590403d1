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
            min_box_size: objects narrower or lower than this, in pixels, are dropped. (Without it
                the box loss reaches infinity.)
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
        annotations = dataset_dict.pop("annotations", [])

        aug_input = T.AugInput(image.astype(np.float32), boxes=xyxy_boxes(annotations))
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
            dataset_dict["file_name"],
        )
        dataset_dict["instances"] = instances[instances.gt_boxes.nonempty(self.min_box_size)]
        return dataset_dict

    @staticmethod
    def _instances(annotations, transforms, image_size, file_name) -> Instances:
        if any("segmentation" not in a for a in annotations):
            raise ValueError(f"{file_name}: an object has no 'segmentation', and YOLACT needs masks")
        is_crowd = [a.get("iscrowd", 0) == 1 for a in annotations]
        annotations = [
            utils.transform_instance_annotations(a, transforms, image_size) for a in annotations
        ]
        instances = utils.annotations_to_instances(annotations, image_size, mask_format="bitmask")
        if not annotations:
            instances.gt_masks = BitMasks(torch.zeros(0, *image_size, dtype=torch.bool))
        instances.gt_iscrowd = torch.tensor(is_crowd, dtype=torch.bool)
        return instances


def xyxy_boxes(annotations: List[Dict[str, Any]]) -> np.ndarray:
    """The boxes of some annotations, (N, 4) float64 XYXY."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
