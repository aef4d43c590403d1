import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances

from .annotations import Size, clip_box, is_usable_annotation, leaves_image, valid_polygons
from .augmentation import LimitSize, box_centers, build_augmentation, max_side, points_inside
from .images import UnreadableImage, read_image


class YOLACTDatasetMapper:
    """Map a dataset dict of Detectron2 into what :class:`YOLACT` is trained on.

    It differs from Detectron2's :class:`DatasetMapper` in that images are augmented as float32;
    crowd regions are kept, as `gt_iscrowd`; objects are dropped when their centre leaves the image
    or they become too small; what of a box or mask is outside the image is cut off before;
    polygons and RLE may be mixed; and grey images of 16 bits are read by their high byte.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        min_box_size: float,
        max_side: int = 2560,
    ):
        """
        Args:
            augmentations: the last of them gives the images the model's size.
            image_format: see :func:`read_image`.
            min_box_size: objects not wider or not higher than this, in pixels, are dropped.
                (Without it the box loss reaches infinity.)
            max_side: larger images are reduced to it, in pixels, before they become float.
        """
        self.limit_size = T.AugmentationList([LimitSize(max_side)])
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
            "max_side": max_side(cfg),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image, in Detectron2's dataset format, with the annotations that
                :func:`drop_unusable` leaves.

        Returns:
            the dict without "annotations" and with "image", (3, S, S) float32, and "instances",
            with `gt_boxes`, `gt_classes`, `gt_masks` (`BitMasks`) and `gt_iscrowd` (bool).

        Raises:
            UnreadableImage: if the file cannot be read.
            ValueError: naming the file, if anything else is wrong.
        """
        with errors_named(dataset_dict["file_name"]):
            return self._map(copy.deepcopy(dataset_dict))

    def _map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        image = read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        annotations = dataset_dict.pop("annotations", [])
        if any("segmentation" not in a for a in annotations):
            raise ValueError("an object has no 'segmentation'; YOLACT needs masks")
        size = image.shape[1], image.shape[0]
        # Where :func:`drop_unusable` was not called, some could take any amount of memory.
        annotations = [
            visible_annotation(a, size) for a in annotations if is_usable_annotation(a, size)
        ]

        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        aug_input = T.AugInput(image, boxes=boxes)
        aug_input.is_crowd = np.array([a.get("iscrowd", 0) == 1 for a in annotations], dtype=bool)
        transforms = self.limit_size(aug_input)
        aug_input.image = aug_input.image.astype(np.float32)
        transforms += self.augmentations(aug_input)

        dataset_dict["image"] = _as_tensor(aug_input.image)
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


class ImageMapper:
    """Map a dataset dict of Detectron2 into what a model is evaluated on: the image alone.

    It differs from Detectron2's ``DatasetMapper(cfg, is_train=False)`` in how images are read, see
    :func:`read_image`. As there, the image is resized by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST if
    the former is not 0, as it is in the configs of YOLACT, which resizes by itself.
    """

    @configurable
    def __init__(self, *, augmentations: list[T.Augmentation], image_format: str):
        """
        Args:
            augmentations: applied to the image.
            image_format: see :func:`read_image`.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg):
        return {
            "augmentations": utils.build_augmentation(cfg, is_train=False),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image, in Detectron2's dataset format.

        Returns:
            the dict without "annotations" and with "image", (3, H, W) uint8, and "height" and
            "width", those of the file.

        Raises:
            UnreadableImage: if the file cannot be read.
            ValueError: naming the file, if anything else is wrong.
        """
        with errors_named(dataset_dict["file_name"]):
            mapped = {k: copy.deepcopy(v) for k, v in dataset_dict.items() if k != "annotations"}
            image = read_image(mapped["file_name"], format=self.image_format)
            utils.check_image_size(mapped, image)
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
            mapped["image"] = _as_tensor(aug_input.image)
            return mapped


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) -> (C, H, W)"""
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


@contextlib.contextmanager
def errors_named(file_name: str) -> Iterator[None]:
    """Let errors name the file, so that of those in a worker one knows where to look."""
    try:
        yield
    except (UnreadableImage, utils.SizeMismatchError):  # which do
        raise
    except Exception as error:
        raise ValueError(f"{file_name}: {type(error).__name__}: {error}") from error


def visible_annotation(annotation: dict[str, Any], size: Size) -> dict[str, Any]:
    """What YOLACT needs of an annotation, as far as it is inside the image: its box as XYXY, its
    mask as RLE if it leaves the image.

    All numbers are made float64: transforms work in place, and would truncate integers.
    """
    kept = {k: annotation[k] for k in ("category_id", "segmentation", "iscrowd") if k in annotation}
    box = np.asarray(annotation["bbox"], dtype=np.float64)
    box = BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]
    kept["bbox"], kept["bbox_mode"] = clip_box(box, size), BoxMode.XYXY_ABS
    if isinstance(kept["segmentation"], list):
        polygons = valid_polygons(kept["segmentation"])
        polygons = [np.asarray(p, dtype=np.float64) for p in polygons]
        if any(leaves_image(polygon.reshape(-1, 2), size) for polygon in polygons):
            polygons = mask_util.merge(mask_util.frPyObjects(polygons, size[1], size[0]))
        kept["segmentation"] = polygons
    return kept
