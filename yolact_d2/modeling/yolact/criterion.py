from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ..instance_detector import log_anchor_counts, split_crowds
from ..masks import resize_masks
from ..registry import get_registered
from .anchors import build_box_transform
from .head import DensePredictions
from .losses import classification_loss, mask_iou, mask_loss, semantic_segmentation_loss
from .mask_iou_head import MaskIoUHead
from .masks import scale_boxes, soft_masks
from .matcher import FOREGROUND, IGNORE, ignore_crowds, match_anchors

_PAPER_PARTS = {
    "ASSIGNER": "max_iou",
    "CLS_LOSS_TYPE": "softmax",
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MASK_LOSS_TYPE": "bce",
}

YOLACT_CRITERION_REGISTRY = Registry("YOLACT_CRITERION")
YOLACT_CRITERION_REGISTRY.__doc__ = """
Target assignment and losses.

The registered object is called with `obj(cfg)` and returns a module that is called as
:class:`YOLACTCriterion`.
"""


def build_criterion(cfg) -> nn.Module:
    """Build the criterion that ``cfg.MODEL.YOLACT.CRITERION`` names."""
    node = cfg.MODEL.YOLACT
    criterion = get_registered(YOLACT_CRITERION_REGISTRY, node.CRITERION, "MODEL.YOLACT.CRITERION")
    for key, papers in _PAPER_PARTS.items():
        if criterion is YOLACTCriterion and node[key] != papers:
            raise ValueError(
                f"MODEL.YOLACT.{key} is {node[key]!r}: YOLACTCriterion has {papers!r} only, set "
                "MODEL.YOLACT.CRITERION to 'ComposedCriterion'"
            )
    return criterion(cfg)


class AnchorTargets(NamedTuple):
    """Training targets of the anchors of one image."""

    labels: Tensor
    """(A,) classes in 0..C, where C is background; -1 is ignored."""
    positives: Tensor
    """(P,) indices of the foreground anchors."""
    matches: Tensor
    """(P,) indices of their objects in the ground truth of the image."""
    quality: Tensor
    """(P,) in 0..1, how well they fit their objects; 1 if the assignment does not say."""
    weights: Tensor
    """(P,) of their boxes in the loss, usually 1."""


class MaskSamples(NamedTuple):
    """The P positives of one image that enter the mask losses."""

    masks: Tensor
    """(P, h, w) predicted masks in 0..1, cropped to the ground-truth boxes."""
    gt_masks: Tensor
    """(P, h, w) bool."""
    gt_boxes: Tensor
    """(P, 4) XYXY, in grid cells."""
    gt_classes: Tensor
    """(P,)"""
    weight: float
    """Number of positives of the image divided by P."""


@YOLACT_CRITERION_REGISTRY.register()
class YOLACTCriterion(nn.Module):
    """Target assignment and losses of the papers (arXiv 1904.02689, sections 3 and 5; arXiv
    1912.06218, section 5.1)."""

    @configurable
    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        iou_thresholds: tuple[float, float] = (0.4, 0.5),
        crowd_overlap_thresh: float = 0.7,
        negatives_per_positive: int = 3,
        min_negatives_per_image: int = 0,
        max_mask_positives: int = 100,
        min_mask_iou_area: int = 25,
        loss_weights: dict[str, float],
    ):
        """
        Args:
            box2box_transform: codes boxes relative to anchors.
            num_classes: C, number of foreground classes.
            iou_thresholds, crowd_overlap_thresh: see :func:`match_anchors`.
            negatives_per_positive, min_negatives_per_image: see :func:`hardest_negatives`.
            max_mask_positives: limit of positives of each image that enter the mask losses, a
                random subset. 0: no limit.
            min_mask_iou_area: objects with masks of at most this many grid cells do not enter the
                mask IoU loss.
            loss_weights: weight of each loss, by name.
        """
        super().__init__()
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.iou_thresholds = tuple(iou_thresholds)
        self.crowd_overlap_thresh = crowd_overlap_thresh
        self.negatives_per_positive = negatives_per_positive
        self.min_negatives_per_image = min_negatives_per_image
        self.max_mask_positives = max_mask_positives
        self.min_mask_iou_area = min_mask_iou_area
        self.loss_weights = loss_weights

    @classmethod
    def from_config(cls, cfg):
        return {
            "box2box_transform": build_box_transform(cfg),
            "num_classes": cfg.MODEL.YOLACT.NUM_CLASSES,
            "iou_thresholds": cfg.MODEL.YOLACT.IOU_THRESHOLDS,
            "crowd_overlap_thresh": cfg.MODEL.YOLACT.CROWD_OVERLAP_THRESH,
            "negatives_per_positive": cfg.MODEL.YOLACT.NEGATIVE_POSITIVE_RATIO,
            "min_negatives_per_image": cfg.MODEL.YOLACT.MIN_NEGATIVES_PER_IMAGE,
            "max_mask_positives": cfg.MODEL.YOLACT.MAX_MASK_POSITIVES,
            "min_mask_iou_area": cfg.MODEL.YOLACT.MASK_IOU.MIN_AREA,
            "loss_weights": {
                "loss_cls": cfg.MODEL.YOLACT.LOSS_CLS_WEIGHT,
                "loss_box_reg": cfg.MODEL.YOLACT.LOSS_BOX_REG_WEIGHT,
                "loss_mask": cfg.MODEL.YOLACT.LOSS_MASK_WEIGHT,
                "loss_sem_seg": cfg.MODEL.YOLACT.LOSS_SEM_SEG_WEIGHT,
                "loss_mask_iou": cfg.MODEL.YOLACT.LOSS_MASK_IOU_WEIGHT,
            },
        }

    def forward(
        self,
        anchor_levels: Sequence[Boxes],
        predictions: DensePredictions,
        prototypes: Tensor,
        sem_seg_logits: Tensor,
        gt_instances: Sequence[Instances],
        mask_iou_head: MaskIoUHead | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            anchor_levels: the anchors of each pyramid level, relative to the image; A in all.
            predictions: of N images.
            prototypes: (N, k, h, w).
            sem_seg_logits: (N, C, h', w').
            gt_instances: N `Instances` with `gt_boxes`, `gt_classes`, `gt_masks` and optionally
                `gt_iscrowd`, in pixels of images of any size.
            mask_iou_head: YOLACT++'s head, trained by "loss_mask_iou".

        Returns:
            the weighted losses. They are divided by the number of positives in the batch of this
            device, "loss_sem_seg" by the number of images, and "loss_cls" by
            max(positives, negatives / `negatives_per_positive`).
        """
        objects, crowds = zip(*(split_crowds(gt) for gt in gt_instances))
        gt_boxes = [relative_boxes(gt.gt_boxes, gt.image_size) for gt in objects]
        crowd_boxes = [relative_boxes(gt.gt_boxes, gt.image_size) for gt in crowds]
        targets = self.assign(
            anchor_levels, predictions, gt_boxes, [gt.gt_classes for gt in objects], crowd_boxes
        )
        samples = self._sample_masks(
            prototypes, predictions.coefficients, targets, gt_boxes, objects
        )
        anchors = Boxes.cat(list(anchor_levels)).tensor
        num_positives = max(sum(len(t.positives) for t in targets), 1)
        losses = {
            "loss_cls": self.class_loss(predictions.logits, targets),
            "loss_box_reg": self.box_loss(anchors, predictions.deltas, targets, gt_boxes),
            "loss_mask": torch.stack([self.mask_loss(s) for s in samples]).sum() / num_positives,
            "loss_sem_seg": self._sem_seg_loss(sem_seg_logits, objects) / len(objects),
        }
        if mask_iou_head is not None:
            loss_mask_iou = self._mask_iou_loss(samples, mask_iou_head)
            losses["loss_mask_iou"] = loss_mask_iou / num_positives
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    @torch.no_grad()
    def assign(
        self,
        anchor_levels: Sequence[Boxes],
        predictions: DensePredictions,
        gt_boxes: Sequence[Boxes],
        gt_classes: Sequence[Tensor],
        crowd_boxes: Sequence[Boxes],
    ) -> Sequence[AnchorTargets]:
        """Assign a class and an object to the anchors of N images.

        Args:
            anchor_levels, predictions: see :meth:`forward`.
            gt_boxes: N times boxes of G objects, in the units of the anchors.
            gt_classes: N times (G,).
            crowd_boxes: N times boxes of crowd regions, in the units of the anchors.
        """
        anchors = Boxes.cat(list(anchor_levels))
        targets = []
        for boxes, classes, crowds in zip(gt_boxes, gt_classes, crowd_boxes):
            matches, labels = match_anchors(anchors, boxes, self.iou_thresholds)
            ignore_crowds(labels, anchors, crowds, self.crowd_overlap_thresh)
            targets.append(anchor_targets(matches, labels, classes, self.num_classes))
        return targets

    def class_loss(self, logits: Tensor, targets: Sequence[AnchorTargets]) -> Tensor:
        """Softmax cross entropy with hard negatives, for logits (N, A, C + 1)."""
        if logits.shape[2] != self.num_classes + 1:
            raise ValueError(
                f"the head predicts {logits.shape[2]} scores an anchor, but softmax needs "
                f"{self.num_classes + 1}: give it has_background=True"
            )
        loss, num_negatives = classification_loss(
            logits,
            torch.stack([t.labels for t in targets]),
            self.negatives_per_positive,
            self.min_negatives_per_image,
        )
        num_positives = sum(len(t.positives) for t in targets)
        log_anchor_counts(num_positives, num_negatives, len(targets))
        # Extra negatives count as if they had positives at the usual ratio.
        normalizer = num_negatives / max(self.negatives_per_positive, 1)
        return loss / normalizer.clamp(min=max(num_positives, 1))

    def box_loss(
        self,
        anchors: Tensor,
        deltas: Tensor,
        targets: Sequence[AnchorTargets],
        gt_boxes: Sequence[Boxes],
    ) -> Tensor:
        """Smooth L1 of the coded boxes (N, A, 4), per positive."""
        predicted = torch.cat([x[t.positives] for x, t in zip(deltas, targets)])
        boxes = torch.cat([x.tensor[t.matches] for x, t in zip(gt_boxes, targets)])
        positives = torch.cat([t.positives for t in targets])
        gt_deltas = self.box2box_transform.get_deltas(anchors[positives], boxes)
        return F.smooth_l1_loss(predicted, gt_deltas, reduction="sum") / max(len(positives), 1)

    def mask_loss(self, samples: MaskSamples) -> Tensor:
        """Binary cross entropy of the masks of one image, a sum over its positives."""
        loss = mask_loss(samples.masks, samples.gt_masks, samples.gt_boxes)
        return loss * samples.weight

    def _sample_masks(
        self,
        prototypes: Tensor,
        coefficients: Tensor,
        targets: Sequence[AnchorTargets],
        gt_boxes: Sequence[Boxes],
        objects: Sequence[Instances],
    ) -> list[MaskSamples]:
        """Assemble the masks of (a random subset of) the positives of each image."""
        size = prototypes.shape[2:]
        samples = []
        for prototypes_i, coefficients_i, target, boxes, gt in zip(
            prototypes, coefficients, targets, gt_boxes, objects
        ):
            num_positives = len(target.positives)
            chosen = random_subset(num_positives, self.max_mask_positives, prototypes.device)
            matches = target.matches[chosen]
            grid_boxes = scale_boxes(boxes.tensor[matches], size)
            samples.append(
                MaskSamples(
                    soft_masks(prototypes_i, coefficients_i[target.positives[chosen]], grid_boxes),
                    resize_masks(gt.gt_masks.tensor, size)[matches],
                    grid_boxes,
                    gt.gt_classes[matches],
                    weight=num_positives / max(len(chosen), 1),
                )
            )
        return samples

    def _mask_iou_loss(self, samples: list[MaskSamples], mask_iou_head: MaskIoUHead) -> Tensor:
        # Without MaskSamples.weight, as in the authors' code.
        large = [s.gt_masks.sum(dim=(1, 2)) > self.min_mask_iou_area for s in samples]
        masks = torch.cat([s.masks[keep] for s, keep in zip(samples, large)])
        gt_masks = torch.cat([s.gt_masks[keep] for s, keep in zip(samples, large)])
        gt_classes = torch.cat([s.gt_classes[keep] for s, keep in zip(samples, large)])
        gt_ious = mask_iou(masks > 0.5, gt_masks)
        return F.smooth_l1_loss(mask_iou_head(masks, gt_classes), gt_ious, reduction="sum")

    def _sem_seg_loss(self, logits: Tensor, objects: Sequence[Instances]) -> Tensor:
        losses = []
        for logits_i, gt in zip(logits, objects):
            gt_masks = resize_masks(gt.gt_masks.tensor, logits_i.shape[1:])
            losses.append(semantic_segmentation_loss(logits_i, gt_masks, gt.gt_classes))
        return torch.stack(losses).sum()


def anchor_targets(
    matches: Tensor, labels: Tensor, gt_classes: Tensor, num_classes: int
) -> AnchorTargets:
    """The training targets of anchors that are matched with objects.

    Args:
        matches, labels: (A,), see :func:`match_anchors`.
        gt_classes: (G,)
        num_classes: C.
    """
    positives = (labels == FOREGROUND).nonzero().squeeze(1)
    matches = matches[positives]
    classes = torch.full_like(labels, num_classes, dtype=torch.int64)
    classes[labels == IGNORE] = -1
    classes[positives] = gt_classes[matches]
    ones = torch.ones_like(positives, dtype=torch.float32)
    return AnchorTargets(classes, positives, matches, quality=ones, weights=ones)


def relative_boxes(boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
    """Boxes in pixels of a (height, width) image -> boxes relative to the image (0..1)."""
    relative = boxes.tensor.clone()
    relative[:, 0::2] /= image_size[1]
    relative[:, 1::2] /= image_size[0]
    return Boxes(relative)


def random_subset(size: int, limit: int, device: torch.device) -> Tensor:
    """Indices of at most `limit` random elements of `size`; of all elements if `limit` is 0."""
    if limit == 0 or size <= limit:
        return torch.arange(size, device=device)
    return torch.randperm(size, device=device)[:limit]
