import itertools
import math
from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..instance_detector import clamp_finite, log_anchor_counts
from .head import EmbedMaskPredictions
from .losses import counting_pixels, giou_loss, mask_losses
from .targets import (
    Locations,
    assign_objects,
    at_locations,
    best_locations,
    box_distances,
    centerness,
    masks_at_stride_4,
)

# The mask loss takes as many objects at once as need this many floats for the differences between
# pixels and proposals.
_MAX_DIFFERENCES = 2**25


class EmbedMaskCriterion(nn.Module):
    """Target assignment and losses of EmbedMask."""

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        sizes_of_interest: Sequence[float] = (64, 128, 256, 512),
        center_sampling_radius: float = 1.5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        loss_weights: dict[str, float],
    ):
        """
        Args:
            strides: of the levels, finest first.
            sizes_of_interest: upper ends of the ranges of all levels but the last, in pixels, see
                :class:`Locations`.
            center_sampling_radius: see :func:`assign_objects`.
            focal_loss_alpha, focal_loss_gamma: of the class loss.
            loss_weights: weight of each loss, by name. "loss_smooth" is only computed if its weight
                is not 0.
        """
        super().__init__()
        self.strides = strides
        self.sizes_of_interest = (-1.0, *sizes_of_interest, math.inf)
        self.center_sampling_radius = center_sampling_radius
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.loss_weights = loss_weights

    @classmethod
    def from_config(cls, cfg, strides: Sequence[int]):
        node = cfg.MODEL.EMBEDMASK
        if len(node.SIZES_OF_INTEREST) != len(strides) - 1:
            raise ValueError(
                f"MODEL.EMBEDMASK.SIZES_OF_INTEREST has {len(node.SIZES_OF_INTEREST)} values; "
                f"{len(strides)} levels (MODEL.EMBEDMASK.IN_FEATURES) need {len(strides) - 1}"
            )
        return {
            "strides": strides,
            "sizes_of_interest": node.SIZES_OF_INTEREST,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "loss_weights": {
                "loss_cls": node.LOSS_CLS_WEIGHT,
                "loss_box_reg": node.LOSS_BOX_REG_WEIGHT,
                "loss_centerness": node.LOSS_CENTERNESS_WEIGHT,
                "loss_mask": node.LOSS_MASK_WEIGHT,
                "loss_smooth": node.LOSS_SMOOTH_WEIGHT,
            },
        }

    def forward(
        self,
        points: Sequence[Tensor],
        predictions: EmbedMaskPredictions,
        objects: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """
        Args:
            points: (Li, 2) of each level, x and y, in pixels of the network input.
            predictions: of N images.
            objects: N `Instances` with `gt_boxes`, `gt_classes` and `gt_masks`, in pixels of the
                network input, without crowd regions.

        Returns:
            the weighted losses. Those of locations are divided by the number of positive locations
            or by the sum of their centre-ness; both are means over all processes.
        """
        locations = self._locations(points)
        assigned = torch.stack(
            [
                assign_objects(
                    locations, x.gt_boxes.tensor, x.gt_masks.tensor, self.center_sampling_radius
                )
                for x in objects
            ]
        )
        losses = self._location_losses(locations, predictions, assigned, objects)
        mask, smooth = [], []
        for i, gt in enumerate(objects):
            image = EmbedMaskPredictions(*(x[i] for x in predictions))
            loss_mask, loss_smooth = self._image_losses(locations, image, assigned[i], gt)
            mask.append(loss_mask)
            smooth.append(loss_smooth)
        losses["loss_mask"] = torch.stack(mask).mean()
        if self.loss_weights["loss_smooth"]:
            losses["loss_smooth"] = torch.stack(smooth).mean()
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    def _locations(self, points: Sequence[Tensor]) -> Locations:
        sizes = self.sizes_of_interest
        ranges = [at_locations(ends, points) for ends in (sizes, sizes[1:])]
        strides = at_locations(self.strides, points)
        return Locations(torch.cat(list(points)), strides, torch.stack(ranges, dim=1))

    def _location_losses(
        self,
        locations: Locations,
        predictions: EmbedMaskPredictions,
        assigned: Tensor,
        objects: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """The losses of classes, boxes and centre-ness, which are sums over locations."""
        num_classes = predictions.logits.shape[2]
        labels = torch.full_like(assigned, num_classes)
        image, location = (assigned >= 0).nonzero(as_tuple=True)
        log_anchor_counts(len(image), assigned.numel() - len(image), len(objects))
        # Objects of all images in one list.
        firsts = itertools.accumulate((len(x) for x in objects), initial=0)
        index = torch.stack([x + first for x, first in zip(assigned, firsts)])[image, location]
        boxes = torch.cat([x.gt_boxes.tensor for x in objects])[index]
        labels[image, location] = torch.cat([x.gt_classes for x in objects])[index]

        targets = box_distances(locations.points[location], boxes)
        targets = targets / locations.strides[location, None]
        target_centerness = centerness(targets)
        sums = torch.stack([torch.ones_like(target_centerness).sum(), target_centerness.sum()])
        num_positives, sum_centerness = differentiable_all_reduce(sums) / comm.get_world_size()
        # Not sigmoid_focal_loss_jit, whose results differ between its first call and later ones.
        loss_cls = sigmoid_focal_loss(
            predictions.logits,
            F.one_hot(labels, num_classes + 1)[..., :-1].to(predictions.logits.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        box_losses = giou_loss(predictions.distances[image, location], targets)
        loss_centerness = F.binary_cross_entropy_with_logits(
            predictions.centerness[image, location], target_centerness, reduction="sum"
        )
        return {
            "loss_cls": loss_cls / num_positives.clamp(min=1),
            "loss_box_reg": (box_losses * target_centerness).sum()
            / sum_centerness.clamp(min=torch.finfo(sum_centerness.dtype).tiny),
            "loss_centerness": loss_centerness / num_positives.clamp(min=1),
        }

    def _image_losses(
        self,
        locations: Locations,
        predictions: EmbedMaskPredictions,
        assigned: Tensor,
        objects: Instances,
    ) -> tuple[Tensor, Tensor]:
        """The mask loss and the smooth loss of an image, means over its objects that have a
        location."""
        embeddings, pixels = clamp_finite(predictions.embeddings), clamp_finite(predictions.pixels)
        margins = predictions.margins
        # Without objects, parameters still need a gradient: zero.
        nothing = embeddings[:0].sum() + margins[:0].sum() + pixels[:0].sum()
        if len(objects) == 0:
            return nothing, nothing
        with torch.no_grad():
            gt_boxes = objects.gt_boxes.tensor
            offsets = predictions.distances * locations.strides[:, None]
            predicted = torch.cat(
                [locations.points - offsets[:, :2], locations.points + offsets[:, 2:]], dim=1
            )
            ious = matched_pairwise_iou(
                Boxes(counting_pixels(predicted)),
                # Background, -1, gets the box of the last object, and is not used.
                Boxes(counting_pixels(gt_boxes)[assigned]),
            )
            best, has_location = best_locations(assigned, ious, len(objects))
            targets = masks_at_stride_4(objects.gt_masks.tensor, pixels.shape[1:])
        if self.loss_weights["loss_smooth"]:
            q, m, smooth = smoothed(embeddings, margins, assigned, ious, best, has_location)
        else:
            q, m, smooth = embeddings[best], margins[best], nothing
        chunk = max(1, _MAX_DIFFERENCES // pixels.numel())
        losses = torch.cat(
            [
                # What the backward pass needs is many times as large as `pixels`: it is computed
                # again instead of kept.
                checkpoint(
                    mask_losses, pixels, *part, use_reentrant=False, preserve_rng_state=False
                )
                for part in zip(q.split(chunk), m.split(chunk), targets.split(chunk))
            ]
        )
        num = has_location.sum().clamp(min=1)
        return (losses * has_location).sum() / num, smooth / num


def smoothed(
    embeddings: Tensor,
    margins: Tensor,
    assigned: Tensor,
    ious: Tensor,
    best: Tensor,
    has_location: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean embeddings and margins of each object's proposals, and how far the proposals are from
    them: the smooth loss of the first version of the article (arXiv 1912.01954v1), with margins in
    place of its sigma.

    Args:
        embeddings, margins: (L, D).
        assigned: (L,), see :func:`assign_objects`.
        ious, best, has_location: see :func:`best_locations`. The proposals of an object are its
            locations with an IoU above 0.5, and the best one.

    Returns:
        (G, D) embeddings; (G, D) margins; the sum of squared differences over all proposals.
    """
    objects = torch.arange(len(best), device=best.device)
    is_proposal = (assigned >= 0) & (ious > 0.5)
    members = (assigned == objects[:, None]) & is_proposal
    members[objects, best] |= has_location
    values = torch.cat([embeddings, margins], dim=1)
    weights = members.to(values.dtype)
    means = weights @ values / weights.sum(dim=1, keepdim=True).clamp(min=1)
    distances = (values - means[assigned]).square().sum(dim=1)
    q, m = means.split(embeddings.shape[1], dim=1)
    return q, m, (distances * members.any(dim=0)).sum()
