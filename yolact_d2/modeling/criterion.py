from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .head import DensePredictions
from .losses import (
    box_regression_loss,
    classification_loss,
    downsample_masks,
    mask_loss,
    semantic_segmentation_loss,
)
from .matcher import FOREGROUND, IGNORE, match_anchors


class AnchorTargets(NamedTuple):
    """What the anchors of one image shall predict."""

    labels: Tensor
    """(A,) classes in 0..C, C being background; -1 is ignored."""
    positives: Tensor
    """(P,) indices of the anchors that have an object."""
    matches: Tensor
    """(P,) the index of that object in the image's ground truth."""


class YOLACTCriterion(nn.Module):
    """Target assignment and the four losses (arXiv 1904.02689, sections 3 and 5)."""

    @configurable
    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        iou_thresholds: Tuple[float, float] = (0.4, 0.5),
        crowd_overlap_thresh: float = 0.7,
        negatives_per_positive: int = 3,
        max_mask_positives: int = 100,
        loss_weights: Dict[str, float],
    ):
        """
        Args:
            box2box_transform: how boxes are coded relative to anchors.
            num_classes: C, without background.
            iou_thresholds, crowd_overlap_thresh: see :func:`match_anchors`.
            negatives_per_positive: see :func:`classification_loss`.
            max_mask_positives: at most so many positives of an image, a random subset, enter the
                mask loss. 0 means all.
            loss_weights: weight of each loss, by its name.
        """
        super().__init__()
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.iou_thresholds = tuple(iou_thresholds)
        self.crowd_overlap_thresh = crowd_overlap_thresh
        self.negatives_per_positive = negatives_per_positive
        self.max_mask_positives = max_mask_positives
        self.loss_weights = loss_weights

    @classmethod
    def from_config(cls, cfg):
        return {
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.YOLACT.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.YOLACT.NUM_CLASSES,
            "iou_thresholds": cfg.MODEL.YOLACT.IOU_THRESHOLDS,
            "crowd_overlap_thresh": cfg.MODEL.YOLACT.CROWD_OVERLAP_THRESH,
            "negatives_per_positive": cfg.MODEL.YOLACT.NEGATIVE_POSITIVE_RATIO,
            "max_mask_positives": cfg.MODEL.YOLACT.MAX_MASK_POSITIVES,
            "loss_weights": {
                "loss_cls": cfg.MODEL.YOLACT.LOSS_CLS_WEIGHT,
                "loss_box_reg": cfg.MODEL.YOLACT.LOSS_BOX_REG_WEIGHT,
                "loss_mask": cfg.MODEL.YOLACT.LOSS_MASK_WEIGHT,
                "loss_sem_seg": cfg.MODEL.YOLACT.LOSS_SEM_SEG_WEIGHT,
            },
        }

    def forward(
        self,
        anchors: Boxes,
        predictions: DensePredictions,
        prototypes: Tensor,
        sem_seg_logits: Tensor,
        gt_instances: Sequence[Instances],
    ) -> Dict[str, Tensor]:
        """
        Args:
            anchors: A anchors, the same for all images, relative to the image (0..1).
            predictions: of N images.
            prototypes: (N, k, h, w).
            sem_seg_logits: (N, C, h', w').
            gt_instances: N `Instances` with `gt_boxes`, `gt_classes`, `gt_masks` and optionally
                `gt_iscrowd`, in pixels of the network input.

        Returns:
            the four losses, weighted. They are divided by the number of positives of this device's
            batch, except "loss_sem_seg", which is a mean over images.
        """
        objects, crowds = zip(*(split_crowds(gt) for gt in gt_instances))
        gt_boxes = [relative_boxes(gt.gt_boxes, gt.image_size) for gt in objects]
        crowd_boxes = [relative_boxes(gt.gt_boxes, gt.image_size) for gt in crowds]
        targets = [
            self.label_anchors(anchors, boxes, gt.gt_classes, crowd)
            for boxes, gt, crowd in zip(gt_boxes, objects, crowd_boxes)
        ]
        num_positives = max(sum(len(t.positives) for t in targets), 1)

        loss_cls = classification_loss(
            predictions.logits,
            torch.stack([t.labels for t in targets]),
            self.negatives_per_positive,
        )
        loss_box_reg = self._box_loss(anchors, predictions.deltas, targets, gt_boxes)
        loss_mask = self._mask_loss(
            prototypes, predictions.coefficients, targets, gt_boxes, objects
        )
        losses = {
            "loss_cls": loss_cls / num_positives,
            "loss_box_reg": loss_box_reg / num_positives,
            "loss_mask": loss_mask / num_positives,
            "loss_sem_seg": self._sem_seg_loss(sem_seg_logits, objects) / len(objects),
        }
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    @torch.no_grad()
    def label_anchors(
        self, anchors: Boxes, gt_boxes: Boxes, gt_classes: Tensor, crowd_boxes: Boxes
    ) -> AnchorTargets:
        """Decide what every anchor of one image shall predict.

        Args:
            anchors: A anchors.
            gt_boxes: the boxes of its G objects, in the units of the anchors.
            gt_classes: (G,)
            crowd_boxes: its crowd regions, likewise.
        """
        matches, labels = match_anchors(
            anchors, gt_boxes, crowd_boxes, self.iou_thresholds, self.crowd_overlap_thresh
        )
        positives = (labels == FOREGROUND).nonzero().squeeze(1)
        matches = matches[positives]
        classes = torch.full_like(labels, self.num_classes, dtype=torch.int64)
        classes[labels == IGNORE] = -1
        classes[positives] = gt_classes[matches]
        return AnchorTargets(classes, positives, matches)

    def _box_loss(
        self,
        anchors: Boxes,
        deltas: Tensor,
        targets: List[AnchorTargets],
        gt_boxes: List[Boxes],
    ) -> Tensor:
        losses = []
        for deltas_i, target, boxes in zip(deltas, targets, gt_boxes):
            gt_deltas = self.box2box_transform.get_deltas(
                anchors.tensor[target.positives], boxes.tensor[target.matches]
            )
            losses.append(box_regression_loss(deltas_i[target.positives], gt_deltas))
        return torch.stack(losses).sum()

    def _mask_loss(
        self,
        prototypes: Tensor,
        coefficients: Tensor,
        targets: List[AnchorTargets],
        gt_boxes: List[Boxes],
        objects: Sequence[Instances],
    ) -> Tensor:
        height, width = prototypes.shape[2:]
        losses = []
        for prototypes_i, coefficients_i, target, boxes, gt in zip(
            prototypes, coefficients, targets, gt_boxes, objects
        ):
            num_positives = len(target.positives)
            chosen = random_subset(num_positives, self.max_mask_positives, prototypes.device)
            matches = target.matches[chosen]
            loss = mask_loss(
                prototypes_i,
                coefficients_i[target.positives[chosen]],
                downsample_masks(gt.gt_masks.tensor, (height, width))[matches],
                boxes.tensor[matches] * boxes.tensor.new_tensor([width, height] * 2),
            )
            # The subset stands for all.
            losses.append(loss * (num_positives / max(len(chosen), 1)))
        return torch.stack(losses).sum()

    def _sem_seg_loss(self, logits: Tensor, objects: Sequence[Instances]) -> Tensor:
        losses = []
        for logits_i, gt in zip(logits, objects):
            gt_masks = downsample_masks(gt.gt_masks.tensor, logits_i.shape[1:])
            losses.append(semantic_segmentation_loss(logits_i, gt_masks, gt.gt_classes))
        return torch.stack(losses).sum()


def split_crowds(gt: Instances) -> Tuple[Instances, Instances]:
    """Part the ground truth of an image into its objects and its crowd regions."""
    if not gt.has("gt_iscrowd"):
        return gt, gt[:0]
    is_crowd = gt.gt_iscrowd.bool()
    return gt[~is_crowd], gt[is_crowd]


def relative_boxes(boxes: Boxes, image_size: Tuple[int, int]) -> Boxes:
    """Boxes in pixels of an image of (height, width), in units of its sides (0..1)."""
    height, width = image_size
    return Boxes(boxes.tensor / boxes.tensor.new_tensor([width, height] * 2))


def random_subset(size: int, limit: int, device: torch.device) -> Tensor:
    """Indices of at most `limit` of `size` things, chosen at random; of all if `limit` is 0."""
    if limit == 0 or size <= limit:
        return torch.arange(size, device=device)
    return torch.randperm(size, device=device)[:limit]
