from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

from ..instance_detector import log_anchor_counts, split_crowds
from ..registry import get_registered
from .assigners import (
    Assignment,
    Candidates,
    assign_atss,
    assign_by_iou,
    assign_task_aligned,
)
from .criterion import (
    YOLACT_CRITERION_REGISTRY,
    AnchorTargets,
    MaskSamples,
    YOLACTCriterion,
    anchor_targets,
    relative_boxes,
)
from .head import DensePredictions, class_scores
from .losses import dice_loss, mask_loss, quality_focal_loss, varifocal_loss
from .mask_iou_head import MaskIoUHead
from .matcher import ignore_crowds

Loss = Callable[[Tensor, Tensor], Tensor]
CLASS_LOSSES: dict[str, Loss | None] = {
    "softmax": None,
    "bce": partial(F.binary_cross_entropy_with_logits, reduction="none"),
    "quality_focal": quality_focal_loss,
    "varifocal": varifocal_loss,
}
BOX_LOSSES: dict[str, Loss | None] = {
    "smooth_l1": None,
    "giou": ops.generalized_box_iou_loss,
    "diou": ops.distance_box_iou_loss,
    "ciou": ops.complete_box_iou_loss,
}


class Positives(NamedTuple):
    """The P foreground anchors of all images."""

    images: Tensor
    """(P,) indices of the images."""
    anchors: Tensor
    """(P,) indices of the anchors."""
    classes: Tensor
    """(P,)"""
    boxes: Tensor
    """(P, 4) XYXY predicted boxes, relative to the image."""
    gt_boxes: Tensor
    """(P, 4) XYXY boxes of their objects."""
    weights: Tensor
    """(P,) their qualities if the assigner gives them, otherwise 1."""


@YOLACT_CRITERION_REGISTRY.register()
class ComposedCriterion(YOLACTCriterion):
    """YOLACT's losses with other parts, each chosen on its own: the assignment of objects to
    anchors, the class loss, the box loss and the mask loss. With the papers' parts it computes what
    :class:`YOLACTCriterion` computes."""

    @configurable
    def __init__(
        self,
        *,
        assigner: Callable[[Candidates], Assignment] = assign_task_aligned,
        cls_loss: Loss | None = CLASS_LOSSES["bce"],
        learn_iou: bool = False,
        box_loss: Loss | None = BOX_LOSSES["giou"],
        use_dice: bool = False,
        **kwargs,
    ):
        """
        Args:
            assigner: see :mod:`.assigners`.
            cls_loss: of logits and targets in 0..1, both (N, A, C), not reduced. None: softmax
                cross entropy with hard negatives.
            learn_iou: the class target of a positive is the IoU of its predicted box, not its
                weight.
            box_loss: of predicted and true boxes, both (P, 4) XYXY, not reduced. None: smooth L1 of
                the box coding.
            use_dice: add the Dice loss to the mask loss.
            kwargs: of :class:`YOLACTCriterion`; `iou_thresholds` are not used.
        """
        super().__init__(**kwargs)
        self.assigner = assigner
        self.cls_loss = cls_loss
        self.learn_iou = learn_iou
        self.box_loss = box_loss
        self.use_dice = use_dice

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.YOLACT
        if node.TASK_ALIGNED.TOPK < 1:
            raise ValueError(
                f"MODEL.YOLACT.TASK_ALIGNED.TOPK is {node.TASK_ALIGNED.TOPK}, not 1 or more"
            )
        aligned = {key.lower(): value for key, value in node.TASK_ALIGNED.items()}
        assigners = {
            "max_iou": partial(assign_by_iou, iou_thresholds=node.IOU_THRESHOLDS),
            "atss": assign_atss,
            "task_aligned": partial(assign_task_aligned, **aligned),
        }

        def chosen(options, key):
            return get_registered(options.items(), node[key], f"MODEL.YOLACT.{key}")

        mask_losses = {"bce": False, "bce_dice": True}
        return {
            **super().from_config(cfg),
            "assigner": chosen(assigners, "ASSIGNER"),
            "cls_loss": chosen(CLASS_LOSSES, "CLS_LOSS_TYPE"),
            # Task-aligned weights are IoUs already.
            "learn_iou": node.CLS_LOSS_TYPE in ("quality_focal", "varifocal")
            and node.ASSIGNER != "task_aligned",
            "box_loss": chosen(BOX_LOSSES, "BBOX_REG_LOSS_TYPE"),
            "use_dice": chosen(mask_losses, "MASK_LOSS_TYPE"),
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
        """As :meth:`YOLACTCriterion.forward`, except that "loss_cls" (unless it is softmax) and
        "loss_box_reg" are divided by the sum of the weights of the positives, which are their
        qualities if the assigner gives them, and 1 otherwise."""
        anchors = Boxes.cat(list(anchor_levels))
        objects, crowds = zip(*(split_crowds(gt) for gt in gt_instances))
        gt_boxes = [relative_boxes(gt.gt_boxes, gt.image_size) for gt in objects]
        crowd_boxes = [relative_boxes(gt.gt_boxes, gt.image_size) for gt in crowds]
        boxes = self._decode(anchors.tensor, predictions.deltas)
        scores = class_scores(predictions.logits, has_background=self.cls_loss is None)
        targets, weights = zip(
            *(
                self.assign(Candidates(anchor_levels, *candidates), crowds)
                for *candidates, crowds in zip(
                    boxes, scores, gt_boxes, [gt.gt_classes for gt in objects], crowd_boxes
                )
            )
        )
        positives = _positives_of_batch(targets, weights, boxes, gt_boxes)
        samples = self._sample_masks(
            prototypes, predictions.coefficients, targets, gt_boxes, objects
        )
        num_positives = max(len(positives.weights), 1)
        losses = {
            "loss_cls": self._class_loss(predictions.logits, targets, positives),
            "loss_box_reg": self._weighted_box_loss(anchors.tensor, predictions.deltas, positives),
            "loss_mask": torch.stack([self._mask_loss(x) for x in samples]).sum() / num_positives,
            "loss_sem_seg": self._sem_seg_loss(sem_seg_logits, objects) / len(objects),
        }
        if mask_iou_head is not None:
            loss_mask_iou = self._mask_iou_loss(samples, mask_iou_head)
            losses["loss_mask_iou"] = loss_mask_iou / num_positives
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    def _decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """(N, A, 4) predicted boxes."""
        flat = anchors.expand_as(deltas).flatten(0, 1)
        return self.box2box_transform.apply_deltas(deltas.flatten(0, 1), flat).view_as(deltas)

    @torch.no_grad()
    def assign(self, candidates: Candidates, crowd_boxes: Boxes) -> tuple[AnchorTargets, Tensor]:
        """
        Returns:
            the targets of the anchors of one image; (P,) the weights of the positives.
        """
        matches, labels, quality = self.assigner(candidates)
        anchors = Boxes.cat(list(candidates.anchors))
        ignore_crowds(labels, anchors, crowd_boxes, self.crowd_overlap_thresh)
        targets = anchor_targets(matches, labels, candidates.gt_classes, self.num_classes)
        if quality is None:
            quality = torch.ones_like(candidates.boxes[:, 0])
        return targets, quality[targets.positives]

    def _class_loss(
        self, logits: Tensor, targets: Sequence[AnchorTargets], positives: Positives
    ) -> Tensor:
        if self.cls_loss is None:
            return self._softmax_loss(logits, targets)
        wanted, labels = torch.zeros_like(logits), torch.stack([t.labels for t in targets])
        quality = positives.weights
        if self.learn_iou:
            quality = matched_pairwise_iou(
                Boxes(positives.boxes.detach()), Boxes(positives.gt_boxes)
            )
        wanted[positives.images, positives.anchors, positives.classes] = quality
        num_negatives = (labels == self.num_classes).sum()
        log_anchor_counts(len(quality), num_negatives, len(targets))
        losses = self.cls_loss(logits, wanted).sum(dim=2) * (labels >= 0)
        return losses.sum() / positives.weights.sum().clamp(min=1)

    def _weighted_box_loss(self, anchors: Tensor, deltas: Tensor, positives: Positives) -> Tensor:
        if self.box_loss is None:
            true = self.box2box_transform.get_deltas(anchors[positives.anchors], positives.gt_boxes)
            predicted = deltas[positives.images, positives.anchors]
            losses = F.smooth_l1_loss(predicted, true, reduction="none").sum(dim=1)
        else:
            losses = self.box_loss(positives.boxes, positives.gt_boxes)
        return (losses * positives.weights).sum() / positives.weights.sum().clamp(min=1)

    def _mask_loss(self, samples: MaskSamples) -> Tensor:
        loss = mask_loss(samples.masks, samples.gt_masks, samples.gt_boxes)
        if self.use_dice:
            loss = loss + dice_loss(samples.masks, samples.gt_masks)
        return loss * samples.weight


def _positives_of_batch(
    targets: Sequence[AnchorTargets],
    weights: Sequence[Tensor],
    boxes: Tensor,
    gt_boxes: Sequence[Boxes],
) -> Positives:
    anchors = torch.cat([t.positives for t in targets])
    images = torch.cat([torch.full_like(t.positives, i) for i, t in enumerate(targets)])
    return Positives(
        images,
        anchors,
        torch.cat([t.labels[t.positives] for t in targets]),
        boxes[images, anchors],
        torch.cat([x.tensor[t.matches] for x, t in zip(gt_boxes, targets)]),
        torch.cat(list(weights)),
    )
