from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

from ..instance_detector import log_anchor_counts
from ..registry import get_registered
from .assigners import Assignment, ImageAnchors, assign_atss, assign_by_iou, assign_task_aligned
from .criterion import (
    YOLACT_CRITERION_REGISTRY,
    AnchorTargets,
    MaskSamples,
    YOLACTCriterion,
    anchor_targets,
)
from .head import DensePredictions, class_scores
from .losses import dice_loss, quality_focal_loss, varifocal_loss
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


@YOLACT_CRITERION_REGISTRY.register()
class ComposedCriterion(YOLACTCriterion):
    """YOLACT's losses with other parts, each chosen on its own: the assignment of objects to
    anchors, the class loss, the box loss and the mask loss. With the papers' parts it computes what
    :class:`YOLACTCriterion` computes."""

    @configurable
    def __init__(
        self,
        *,
        assigner: Callable[[ImageAnchors], Assignment] = assign_task_aligned,
        cls_loss: Loss | None = CLASS_LOSSES["bce"],
        learn_iou: bool = False,
        box_loss: Loss | None = BOX_LOSSES["giou"],
        use_dice: bool = False,
        **kwargs,
    ):
        """
        Args:
            assigner: see :mod:`.assigners`. The qualities that it gives are the class targets of
                the positives and the weights of their boxes; otherwise both are 1.
            cls_loss: of logits and targets in 0..1, both (N, A, C), not reduced. None: softmax
                cross entropy with hard negatives.
            learn_iou: the class targets are the IoUs of the predicted boxes instead of 1.
            box_loss: of predicted and true boxes, both (P, 4) XYXY, not reduced. None: smooth L1 of
                the box coding.
            use_dice: add the Dice loss to the mask loss.
            kwargs: of :class:`YOLACTCriterion`.
        """
        super().__init__(**kwargs)
        self.assigner = assigner
        self.cls_loss = cls_loss
        self.learn_iou = learn_iou
        self.box_loss_function = box_loss
        self.use_dice = use_dice

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.YOLACT
        if node.TASK_ALIGNED.TOPK < 1:
            raise ValueError(
                f"MODEL.YOLACT.TASK_ALIGNED.TOPK is {node.TASK_ALIGNED.TOPK}, not 1 or more"
            )
        if min(node.TASK_ALIGNED.ALPHA, node.TASK_ALIGNED.BETA) < 0:
            raise ValueError("MODEL.YOLACT.TASK_ALIGNED: ALPHA and BETA must be 0 or more")
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
            "learn_iou": node.CLS_LOSS_TYPE in ("quality_focal", "varifocal"),
            "box_loss": chosen(BOX_LOSSES, "BBOX_REG_LOSS_TYPE"),
            "use_dice": chosen(mask_losses, "MASK_LOSS_TYPE"),
        }

    @torch.no_grad()
    def assign(
        self,
        anchor_levels: Sequence[Boxes],
        predictions: DensePredictions,
        gt_boxes: Sequence[Boxes],
        gt_classes: Sequence[Tensor],
        crowd_boxes: Sequence[Boxes],
    ) -> Sequence[AnchorTargets]:
        """As :meth:`YOLACTCriterion.assign`."""
        anchors = Boxes.cat(list(anchor_levels))
        scores = class_scores(predictions.logits, has_background=self.cls_loss is None)
        targets = []
        for i, (boxes, classes, crowds) in enumerate(zip(gt_boxes, gt_classes, crowd_boxes)):
            predicted = self.box2box_transform.apply_deltas(predictions.deltas[i], anchors.tensor)
            matches, labels, quality = self.assigner(
                ImageAnchors(anchor_levels, predicted, scores[i], boxes, classes)
            )
            ignore_crowds(labels, anchors, crowds, self.crowd_overlap_thresh)
            target = anchor_targets(matches, labels, classes, self.num_classes)
            if quality is not None:
                quality = quality[target.positives]
                target = target._replace(quality=quality, weights=quality)
            elif self.learn_iou:
                predicted = Boxes(predicted[target.positives])
                quality = matched_pairwise_iou(predicted, boxes[target.matches])
                target = target._replace(quality=quality)
            targets.append(target)
        return targets

    def class_loss(self, logits: Tensor, targets: Sequence[AnchorTargets]) -> Tensor:
        """The loss of all anchors that are not ignored, divided by the weights of the positives."""
        if self.cls_loss is None:
            return super().class_loss(logits, targets)
        if logits.shape[2] != self.num_classes:
            raise ValueError(
                f"the head predicts {logits.shape[2]} scores an anchor, but the class loss needs "
                f"{self.num_classes}: give it has_background=False"
            )
        wanted, labels = torch.zeros_like(logits), torch.stack([t.labels for t in targets])
        for wanted_i, t in zip(wanted, targets):
            wanted_i[t.positives, t.labels[t.positives]] = t.quality
        num_positives = sum(len(t.positives) for t in targets)
        log_anchor_counts(num_positives, (labels == self.num_classes).sum(), len(targets))
        losses = self.cls_loss(logits, wanted).sum(dim=2) * (labels >= 0)
        return losses.sum() / _sum_of_weights(targets)

    def box_loss(
        self,
        anchors: Tensor,
        deltas: Tensor,
        targets: Sequence[AnchorTargets],
        gt_boxes: Sequence[Boxes],
    ) -> Tensor:
        """The weighted mean of the losses of the positives."""
        deltas = torch.cat([x[t.positives] for x, t in zip(deltas, targets)])
        anchors = torch.cat([anchors[t.positives] for t in targets])
        true = torch.cat([x.tensor[t.matches] for x, t in zip(gt_boxes, targets)])
        if self.box_loss_function is None:
            true = self.box2box_transform.get_deltas(anchors, true)
            losses = F.smooth_l1_loss(deltas, true, reduction="none").sum(dim=1)
        else:
            boxes = self.box2box_transform.apply_deltas(deltas, anchors)
            losses = self.box_loss_function(boxes, true)
        weights = torch.cat([t.weights for t in targets])
        return (losses * weights).sum() / _sum_of_weights(targets)

    def mask_loss(self, samples: MaskSamples) -> Tensor:
        loss = super().mask_loss(samples)
        if self.use_dice:
            loss = loss + dice_loss(samples.masks, samples.gt_masks) * samples.weight
        return loss


def _sum_of_weights(targets: Sequence[AnchorTargets]) -> Tensor:
    """Of the positives in the batch, at least 1; the mean of all processes."""
    total = torch.cat([t.weights for t in targets]).sum()
    return (differentiable_all_reduce(total) / comm.get_world_size()).clamp(min=1)
