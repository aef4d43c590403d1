import copy
import logging
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from ..config import model_node
from .annotations import Size, clip_box, is_usable_annotation, leaves_image, valid_polygons
from .augmentation import RandomCrop, box_centers, build_augmentation, points_inside
from .images import UnreadableImage, read_image


class YOLACTDatasetMapper:
    """Detectron2's :class:`DatasetMapper` for this project: map a dataset dict to a model input.

    The augmentation is YOLACT's or, for EmbedMask, Detectron2's. Unlike Detectron2's mapper, this
    one reads images by :func:`read_image`, clips boxes and masks to the image beforehand, keeps
    crowd regions (`gt_iscrowd`), drops objects whose centre leaves the image or that become too
    small, and accepts polygons and RLE side by side.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        min_box_size: float = 0.0,
        recompute_boxes: bool = False,
    ):
        """
        Args:
            is_train: whether the annotations are used.
            augmentations: of 8-bit images.
            image_format: see :func:`read_image`.
            min_box_size: objects whose box is not wider and higher than this, in pixels of the
                augmented image, are dropped. (The box loss of a box without area is infinite.)
            recompute_boxes: make boxes that fit the masks of the augmented image, instead of
                clipping the augmented boxes.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.min_box_size = min_box_size
        self.recompute_boxes = recompute_boxes
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(f"Augmentations used in {mode}: {augmentations}")

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        is_yolact = model_node(cfg) == "YOLACT"
        has_crop = is_train and not is_yolact and cfg.INPUT.CROP.ENABLED
        if is_train and is_yolact:
            augmentations = build_augmentation(cfg)
        else:  # For YOLACT none: INPUT.MIN_SIZE_TEST is 0, and the model resizes.
            augmentations = utils.build_augmentation(cfg, is_train)
        if has_crop:
            augmentations.insert(0, RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "min_box_size": cfg.INPUT.MIN_BOX_SIZE,
            "recompute_boxes": has_crop,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image with its annotations, in Detectron2's dataset format.

        Returns:
            the dict without "annotations" and with "image", (3, H, W), uint8 or, for the training
            of YOLACT, float32; with "height" and "width", those of the file; and in training with
            "instances", which have `gt_boxes`, `gt_classes`, `gt_masks` (`BitMasks`) and
            `gt_iscrowd` (bool).

        Raises:
            UnreadableImage: if the file cannot be read.
            ValueError: naming the file, if anything else is wrong.
        """
        try:
            return self._map(dataset_dict)
        except (UnreadableImage, utils.SizeMismatchError):  # they name the file already
            raise
        except Exception as error:
            file_name = dataset_dict["file_name"]
            raise ValueError(f"{file_name}: {type(error).__name__}: {error}") from error

    def _map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        mapped = copy.deepcopy({k: v for k, v in dataset_dict.items() if k != "annotations"})
        annotations = dataset_dict.get("annotations", [])
        image = read_image(mapped["file_name"], format=self.image_format)
        utils.check_image_size(mapped, image)
        if self.is_train:
            image, mapped["instances"] = self._augment(image, annotations)
        else:
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
            image = aug_input.image
        # (H, W, C) -> (C, H, W). Arrays of Pillow are read-only.
        mapped["image"] = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        return mapped

    def _augment(
        self, image: np.ndarray, annotations: list[dict[str, Any]]
    ) -> tuple[np.ndarray, Instances]:
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
        height, width = image_size = aug_input.image.shape[:2]

        # Boxes are clipped below, so look here at where the centres of the whole boxes are.
        kept = points_inside(box_centers(aug_input.boxes), image_size)
        gt_boxes = Boxes(clip_box(aug_input.boxes, (width, height)))
        if not self.recompute_boxes:  # before masks are made
            kept &= gt_boxes.nonempty(self.min_box_size).numpy()
        annotations = [a for a, keep in zip(annotations, kept) if keep]
        instances = Instances(image_size)
        instances.gt_boxes = gt_boxes[torch.from_numpy(kept)]
        instances.gt_classes = torch.tensor([int(a["category_id"]) for a in annotations]).long()
        instances.gt_masks = transformed_masks(annotations, transforms, image_size)
        instances.gt_iscrowd = torch.from_numpy(is_crowd[kept])
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
            instances = instances[instances.gt_boxes.nonempty(self.min_box_size)]
        return aug_input.image, instances


def transformed_masks(
    annotations: list[dict[str, Any]], transforms: T.TransformList, image_size: tuple[int, int]
) -> BitMasks:
    """The masks, (N, H, W), of annotations of :func:`visible_annotation` in the image of
    `image_size`, (height, width), that transforms make. Changes the polygons in place."""
    masks = np.zeros((len(annotations), *image_size), dtype=bool)
    for mask, segmentation in zip(masks, (a["segmentation"] for a in annotations)):
        if isinstance(segmentation, dict):
            mask[:] = transforms.apply_segmentation(mask_util.decode(segmentation))
        elif polygons := transforms.apply_polygons(segmentation):
            # Decoding takes most of the time: leave out what is below and to the right. (To move a
            # polygon to the upper left would round differently.)
            far_corner = np.concatenate(polygons).max(axis=0)[::-1]
            size = np.clip(far_corner + 2, 1, image_size).astype(int)
            rles = mask_util.frPyObjects([p.reshape(-1) for p in polygons], *size)
            mask[: size[0], : size[1]] = mask_util.decode(mask_util.merge(rles))
    return BitMasks(torch.from_numpy(masks))


def visible_annotation(annotation: dict[str, Any], size: Size) -> dict[str, Any]:
    """A copy of category, crowd flag, box (XYXY) and mask, clipped to the image; a mask that leaves
    it becomes RLE.

    All numbers become float64, because transforms work in place and would truncate integers.
    Polygons become (P, 2).
    """
    kept: dict[str, Any] = {k: annotation[k] for k in ("category_id", "segmentation")}
    kept["iscrowd"] = annotation.get("iscrowd", 0)
    box = np.asarray(annotation["bbox"], dtype=np.float64)
    box = BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]
    kept["bbox"], kept["bbox_mode"] = clip_box(box, size), BoxMode.XYXY_ABS
    if isinstance(kept["segmentation"], list):
        valid = valid_polygons(kept["segmentation"])
        polygons = [np.array(p, dtype=np.float64) for p in valid]
        kept["segmentation"] = [p.reshape(-1, 2) for p in polygons]
        if any(leaves_image(polygon, size) for polygon in kept["segmentation"]):
            kept["segmentation"] = mask_util.merge(
                mask_util.frPyObjects(polygons, size[1], size[0])
            )
    return kept
