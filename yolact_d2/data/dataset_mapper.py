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
from detectron2.structures import BitMasks, BoxMode

from ..config import model_node
from .annotations import Size, clip_box, is_usable_annotation, leaves_image, valid_polygons
from .augmentation import (
    AS_FLOAT,
    LimitSize,
    box_centers,
    build_augmentation,
    max_side,
    points_inside,
)
from .images import UnreadableImage, read_image


class YOLACTDatasetMapper:
    """Map a dataset dict of Detectron2 to a training example.

    The augmentation is YOLACT's or, for EmbedMask, Detectron2's. Unlike Detectron2's
    :class:`DatasetMapper`, this one reads images by :func:`read_image`, clips boxes and masks to
    the image beforehand, keeps crowd regions (`gt_iscrowd`), drops objects whose centre leaves the
    image or that become too small, and accepts polygons and RLE side by side.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        min_box_size: float,
    ):
        """
        Args:
            augmentations: of 8-bit images; the last one resizes the image to the model's input
                size.
            image_format: see :func:`read_image`.
            min_box_size: objects whose box is not wider and higher than this, in pixels of the
                augmented image, are dropped. (The box loss of a box without area is infinite.)
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.min_box_size = min_box_size
        logging.getLogger(__name__).info(f"Augmentations used in training: {augmentations}")

    @classmethod
    def from_config(cls, cfg):
        if model_node(cfg) == "YOLACT":
            augmentations = [LimitSize(max_side(cfg)), AS_FLOAT, *build_augmentation(cfg)]
        else:
            augmentations = utils.build_augmentation(cfg, is_train=True)
        return {
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "min_box_size": cfg.INPUT.MIN_BOX_SIZE,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image with its annotations, in Detectron2's dataset format.

        Returns:
            the dict without "annotations" and with "image", (3, H, W), float32 for YOLACT and uint8
            for EmbedMask, and "instances", with `gt_boxes`, `gt_classes`, `gt_masks` (`BitMasks`)
            and `gt_iscrowd` (bool).

        Raises:
            UnreadableImage: if the file cannot be read.
            ValueError: naming the file, if anything else is wrong.
        """
        with _name_file_in_errors(dataset_dict["file_name"]):
            return self._map(copy.deepcopy(dataset_dict))

    def _map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        image = read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        annotations = dataset_dict.pop("annotations", [])
        size = image.shape[1], image.shape[0]
        # Usually done before; rasterising polygons far outside the image takes unbounded memory.
        annotations = [
            visible_annotation(a, size)
            for a in annotations
            if isinstance(a["segmentation"], dict) or is_usable_annotation(a, size)
        ]
        is_crowd = np.array([a["iscrowd"] == 1 for a in annotations], dtype=bool)

        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        aug_input = T.AugInput(image, boxes=boxes)
        aug_input.is_crowd = is_crowd
        transforms = self.augmentations(aug_input)
        image_size = aug_input.image.shape[:2]

        # Boxes are clipped below, so look here at where the centres of the whole boxes are.
        kept = points_inside(box_centers(aug_input.boxes), image_size)
        annotations = [
            utils.transform_instance_annotations(a, transforms, image_size)
            for a, keep in zip(annotations, kept)
            if keep
        ]
        instances = utils.annotations_to_instances(annotations, image_size, mask_format="bitmask")
        if not annotations:
            instances.gt_masks = BitMasks(torch.zeros(0, *image_size, dtype=torch.bool))
        instances.gt_iscrowd = torch.from_numpy(is_crowd[kept])

        dataset_dict["image"] = _as_tensor(aug_input.image)
        dataset_dict["instances"] = instances[instances.gt_boxes.nonempty(self.min_box_size)]
        return dataset_dict


class ImageMapper:
    """Detectron2's ``DatasetMapper(cfg, is_train=False)``, but reading by :func:`read_image`.

    INPUT.MIN_SIZE_TEST is 0 in the configs of YOLACT, which switches resizing off: the model
    resizes.
    """

    @configurable
    def __init__(self, *, augmentations: list[T.Augmentation], image_format: str):
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
            as :class:`YOLACTDatasetMapper` does.
        """
        mapped = copy.deepcopy({k: v for k, v in dataset_dict.items() if k != "annotations"})
        with _name_file_in_errors(mapped["file_name"]):
            image = read_image(mapped["file_name"], format=self.image_format)
            utils.check_image_size(mapped, image)
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
            mapped["image"] = _as_tensor(aug_input.image)
        return mapped


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) -> (C, H, W)"""
    # Arrays of Pillow are read-only.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


@contextlib.contextmanager
def _name_file_in_errors(file_name: str) -> Iterator[None]:
    try:
        yield
    except (UnreadableImage, utils.SizeMismatchError):  # they name it already
        raise
    except Exception as error:
        raise ValueError(f"{file_name}: {type(error).__name__}: {error}") from error


def visible_annotation(annotation: dict[str, Any], size: Size) -> dict[str, Any]:
    """Category, crowd flag, box (XYXY) and mask, clipped to the image; a mask that leaves it
    becomes RLE.

    All numbers become float64, because transforms work in place and would truncate integers.
    """
    kept: dict[str, Any] = {k: annotation[k] for k in ("category_id", "segmentation")}
    kept["iscrowd"] = annotation.get("iscrowd", 0)
    box = np.asarray(annotation["bbox"], dtype=np.float64)
    box = BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]
    kept["bbox"], kept["bbox_mode"] = clip_box(box, size), BoxMode.XYXY_ABS
    if isinstance(kept["segmentation"], list):
        valid = valid_polygons(kept["segmentation"])
        polygons = [np.asarray(p, dtype=np.float64) for p in valid]
        if any(leaves_image(polygon.reshape(-1, 2), size) for polygon in polygons):
            kept["segmentation"] = mask_util.merge(
                mask_util.frPyObjects(polygons, size[1], size[0])
            )
        else:
            kept["segmentation"] = polygons
    return kept
