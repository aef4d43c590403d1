import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..instance_detector import InstanceDetector, clamp_finite, output_size
from ..tracing import is_eager_cpu, is_tracing
from ..weight_init import xavier_uniform_init
from .anchors import DistanceTransform, are_relative, build_box_transform
from .batch import BatchDetections, BatchMasks, batch_instances, batch_masks, choose_batch
from .criterion import build_criterion
from .head import DensePredictions, build_head, class_scores
from .mask_iou_head import MaskIoUHead
from .masks import clip_boxes, detection_masks, paste_masks, scale_boxes, soft_masks
from .multi_scale import training_sides
from .nms import Detections, fast_nms, get_nms, may_exceed
from .protonet import build_protonet


@META_ARCH_REGISTRY.register()
class YOLACT(InstanceDetector):
    """YOLACT: real-time instance segmentation (arXiv 1904.02689), and YOLACT++ (arXiv 1912.06218).

    A fully-convolutional head predicts a class, a box and k mask coefficients for every anchor. In
    parallel, the protonet predicts k prototype masks of the whole image. The mask of an instance is
    the linear combination of the prototypes with its coefficients, cropped to its box. YOLACT++
    adds deformable convolutions to the backbone and a network that predicts the IoU of each mask.

    Boxes and anchors inside the model are relative to the image (0..1), as in the authors' code.
    In other units, rounding would break ties between anchors with equal IoUs differently.
    """

    config_node = "YOLACT"
    networks = ("backbone", "head", "protonet")

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        protonet: nn.Module,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform | DistanceTransform,
        criterion: nn.Module,
        num_classes: int,
        image_size: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        nms: Callable[..., Detections],
        mask_iou_head: MaskIoUHead | None = None,
        test_anchor_score_thresh: float = 0.05,
        test_nms_thresh: float = 0.5,
        test_topk_candidates: int = 200,
        test_score_thresh: float = 0.0,
        max_detections_per_image: int = 100,
        vis_period: int = 0,
        input_format: str = "BGR",
        drop_empty_boxes: bool = True,
        multi_scale: float = 0.0,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        """
        Args:
            backbone: returns a feature pyramid.
            head: predicts classes, boxes and coefficients of all anchors, see
                :class:`YOLACTHead`.
            head_in_features: names of the pyramid levels, finest first.
            protonet: predicts the prototypes from the finest level.
            anchor_generator: returns the anchors of each level.
            box2box_transform: codes boxes relative to anchors.
            criterion: computes the losses, see :class:`YOLACTCriterion`.
            num_classes: C, number of foreground classes.
            image_size: S, images are resized to S x S pixels.
            pixel_mean, pixel_std: of each channel, for pixel values in 0..255.
            nms: a function of NMS_REGISTRY.
            mask_iou_head: YOLACT++'s network that predicts the IoU of each mask.
            test_anchor_score_thresh: only anchors whose best class score is above it enter NMS.
            test_nms_thresh: IoU above which NMS suppresses a box.
            test_topk_candidates: number of best boxes of each class that enter NMS.
            test_score_thresh: detections with a lower score are dropped after NMS.
            max_detections_per_image: number of best detections to keep.
            vis_period: draw a training image every this many iterations. 0: never.
            input_format: INPUT.FORMAT, the order of the channels of images.
            drop_empty_boxes: drop detections of which no part is inside the image. The authors'
                code keeps them, with boxes whose corners are in the wrong order.
            multi_scale: f, see :func:`training_sides`.
            memory_format: of the weights.
        """
        super().__init__(
            backbone=backbone,
            head=head,
            head_in_features=head_in_features,
            anchor_generator=anchor_generator,
            criterion=criterion,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            test_score_thresh=test_score_thresh,
            max_detections_per_image=max_detections_per_image,
            vis_period=vis_period,
            input_format=input_format,
        )
        self.protonet = protonet
        self.mask_iou_head = mask_iou_head
        self.box2box_transform = box2box_transform
        self.image_size = image_size
        self.training_sides = training_sides(image_size, multi_scale)

        # Semantic segmentation of the finest level, an auxiliary loss in training only.
        channels = backbone.output_shape()[head_in_features[0]].channels
        self.sem_seg_conv = Conv2d(channels, num_classes, kernel_size=1)
        xavier_uniform_init(self.sem_seg_conv)

        self.nms = nms
        self.test_anchor_score_thresh = test_anchor_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_candidates = test_topk_candidates
        self.drop_empty_boxes = drop_empty_boxes
        self.to(memory_format=memory_format)

    @classmethod
    def from_config(cls, cfg):
        if cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES < 1:
            raise ValueError("MODEL.YOLACT.PROTONET.NUM_PROTOTYPES must be 1 or more")
        shared = super().from_config(cfg)
        shapes = shared["backbone"].output_shape()
        feature_shapes = [shapes[name] for name in shared["head_in_features"]]
        anchor_generator = shared["anchor_generator"]
        sides = [math.ceil(cfg.INPUT.IMAGE_SIZE / shape.stride) for shape in feature_shapes]
        if not are_relative(anchor_generator([torch.zeros(1, 1, side, side) for side in sides])):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.NAME: the boxes of {cfg.MODEL.ANCHOR_GENERATOR.NAME} are "
                "not relative to the image (0..1), as those of YOLACTAnchorGenerator are"
            )
        if cfg.MODEL.YOLACT.ANCHOR_FREE and set(anchor_generator.num_cell_anchors) != {1}:
            raise ValueError(
                "MODEL.YOLACT.ANCHOR_FREE needs one location a cell: one value for each level in "
                "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS"
            )
        mask_iou_head = None
        if cfg.MODEL.YOLACT.MASK_IOU.ENABLED:
            smallest = min(
                cfg.INPUT.IMAGE_SIZE, *training_sides(cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MULTI_SCALE)
            )
            mask_size = 2 * math.ceil(smallest / feature_shapes[0].stride)
            mask_iou_head = MaskIoUHead(cfg, mask_size)
        return {
            **shared,
            "head": build_head(cfg, feature_shapes),
            "protonet": build_protonet(cfg, feature_shapes[0]),
            "box2box_transform": build_box_transform(cfg),
            "criterion": build_criterion(cfg),
            "num_classes": cfg.MODEL.YOLACT.NUM_CLASSES,
            "image_size": cfg.INPUT.IMAGE_SIZE,
            "multi_scale": cfg.INPUT.MULTI_SCALE,
            "nms": get_nms(cfg.MODEL.YOLACT.NMS),
            "mask_iou_head": mask_iou_head,
            "test_anchor_score_thresh": cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.YOLACT.NMS_THRESH_TEST,
            "test_topk_candidates": cfg.MODEL.YOLACT.TOPK_CANDIDATES_TEST,
        }

    @property
    def nms_limits(self) -> dict[str, Any]:
        """The arguments that all NMS functions and :func:`choose_batch` take."""
        return {
            "iou_thresh": self.test_nms_thresh,
            "topk": self.test_topk_candidates,
            "max_detections": self.max_detections_per_image,
        }

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # copies are not compiled, as those of any module
        state.pop("detect_batch", None)
        return state

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: one dict for each image:

                * "image": (3, H, W) tensor in 0..255, channels in the order of INPUT.FORMAT.
                * "instances": in training, `Instances` with `gt_boxes`, `gt_classes`, `gt_masks`
                  (`BitMasks`) and optionally `gt_iscrowd` (bool), in pixels of "image".
                * "height", "width": in inference, the resolution of the result; by default that
                  of "image".

        Returns:
            In training, dict[str, Tensor] of the losses "loss_cls", "loss_box_reg", "loss_mask",
            "loss_sem_seg" and, for YOLACT++, "loss_mask_iou".

            In inference, one dict for each image. Its "instances" have `pred_boxes`, `scores`,
            `pred_classes`, `pred_masks` (bool, N x height x width) and, for YOLACT++,
            `mask_scores` (score times predicted mask IoU), in descending order of `scores`.

        On a GPU, :meth:`detect_batch` finds the detections of all images at once. On a CPU, and by
        other NMS functions than Fast NMS, :meth:`inference_single_image` does for each image.
        """
        if self.training or self.device.type != "cpu":
            return self.forward_batch(batched_inputs)
        # On a CPU a batch does not fit the cache, so single images are faster.
        return [result for x in batched_inputs for result in self.forward_batch([x])]

    def forward_batch(self, batched_inputs: list[dict]):
        """Same as :meth:`forward`, but always with all images in one batch."""
        images = self.preprocess_image(batched_inputs)
        if not self.training and not is_eager_cpu(images):
            if self.nms is fast_nms:
                sizes = [output_size(x, x["image"].shape[-2:]) for x in batched_inputs]
                found, masks = self.detect_batch(images)
                results = batch_instances(found, masks, sizes, self.test_score_thresh)
                return [{"instances": instances} for instances in results]
            if is_tracing():
                raise NotImplementedError(
                    f"MODEL.YOLACT.NMS is {self.nms.__name__}: only fast_nms can be traced"
                )
        features, predictions, prototypes = self.forward_networks(images)
        anchor_levels = self.anchor_generator(features)
        sem_seg_logits = self.sem_seg_conv(features[0]).float() if self.training else None
        with torch.autocast(self.device.type, enabled=False):
            inference = partial(
                self.forward_inference, Boxes.cat(anchor_levels), predictions, prototypes
            )
            if self.training:
                self.visualize_if_due(batched_inputs, inference)
                return self.criterion(
                    anchor_levels,
                    predictions,
                    prototypes,
                    sem_seg_logits,
                    [self.ground_truth(x) for x in batched_inputs],
                    self.mask_iou_head,
                )
            return inference(batched_inputs)

    def forward_networks(self, images: Tensor) -> tuple[list[Tensor], DensePredictions, Tensor]:
        """
        Args:
            images: (N, 3, S, S), normalized.

        Returns:
            the features of the head's levels, and float32 predictions and prototypes (N, k, h, w).
        """
        features = self.backbone(images)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        prototypes = self.protonet(features[0])
        # The networks may run in mixed precision; losses and postprocessing need float32.
        predictions = DensePredictions(*(x.float() for x in predictions))
        return features, predictions, prototypes.float()

    def preprocess_image(self, batched_inputs: list[dict]) -> Tensor:
        """Resize to S x S, normalize and batch the images. A grayscale image becomes 3 channels.

        Returns:
            (N, 3, S, S), in the dtype of the network; in training, S may be one of
            :func:`training_sides` instead.
        """
        side = self.image_size
        if self.training and self.training_sides != [side]:
            # By the CPU's generator, which the trainer seeds in each iteration.
            side = self.training_sides[int(torch.randint(len(self.training_sides), ()))]
        size = (side, side)
        images = []
        for x in batched_inputs:
            image = F.interpolate(self.image_to_device(x)[None], size=size, mode="bilinear")
            images.append(image.expand(-1, len(self.pixel_mean), -1, -1))
        return self.to_network_input((torch.cat(images) - self.pixel_mean) / self.pixel_std)

    def detect_batch(self, images: Tensor) -> tuple[BatchDetections, BatchMasks]:
        """The detections of a batch by Fast NMS. No decision depends on values, so this can be
        compiled, traced and exported. A CUDA graph overwrites its results in the next call.

        Args:
            images: (N, 3, S, S), normalized.
        """
        features, predictions, prototypes = self.forward_networks(images)
        anchors = Boxes.cat(self.anchor_generator(features)).tensor
        with torch.autocast(self.device.type, enabled=False):
            decoded = self.decode_batch(anchors, predictions, self.test_anchor_score_thresh)
            found = choose_batch(*decoded, **self.nms_limits)
            return found, batch_masks(found, clamp_finite(prototypes), self.mask_iou_head)

    def decode_batch(
        self, anchors: Tensor, predictions: DensePredictions, score_thresh: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            anchors: (A, 4).
            score_thresh: anchors whose best class score is not above it are dropped.

        Returns:
            boxes (N, A, 4) XYXY, relative to the image; scores (N, A, C), -1 for the anchors that
            are dropped, here or by :meth:`decode`: such scores suppress nothing, and no detection
            has one; coefficients (N, A, k).
        """
        scores = class_scores(predictions.logits, self.head.has_background)
        boxes, kept = self.decode(anchors, predictions.deltas)
        kept &= scores.amax(dim=-1) > score_thresh
        scores = scores.masked_fill(~kept[..., None], -1)
        return boxes, scores, clamp_finite(predictions.coefficients)

    def forward_inference(
        self,
        anchors: Boxes,
        predictions: DensePredictions,
        prototypes: Tensor,
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """
        Args:
            anchors: A anchors, the same for all images.
            predictions: of N images.
            prototypes: (N, k, h, w).
            batched_inputs: as in :meth:`forward`, of the first images or of all.

        Returns:
            as :meth:`forward`.
        """
        results = []
        for i, x in enumerate(batched_inputs):
            predictions_i = DensePredictions(*(p[i] for p in predictions))
            instances = self.inference_single_image(
                anchors, predictions_i, prototypes[i], output_size(x, x["image"].shape[-2:])
            )
            results.append({"instances": instances})
        return results

    def inference_single_image(
        self,
        anchors: Boxes,
        predictions: DensePredictions,
        prototypes: Tensor,
        output_size: tuple[int, int],
    ) -> Instances:
        """
        Args:
            anchors: A anchors.
            predictions: of one image, without the batch dimension.
            prototypes: (k, h, w).
            output_size: (height, width) of the result, in pixels.
        """
        boxes, scores, classes, coefficients = self.detect(anchors, predictions)
        grid_boxes = scale_boxes(boxes, prototypes.shape[1:])
        prototypes = clamp_finite(prototypes)

        result = Instances(output_size)
        result.pred_boxes = Boxes(scale_boxes(clip_boxes(boxes), output_size))
        result.scores = scores
        result.pred_classes = classes
        if self.mask_iou_head is None:
            result.pred_masks = detection_masks(prototypes, coefficients, grid_boxes, output_size)
        else:
            masks = soft_masks(prototypes, coefficients, grid_boxes)
            result.mask_scores = scores * self.mask_iou_head(masks, classes)
            result.pred_masks = paste_masks(masks, grid_boxes, output_size)
        return result

    def detect(
        self, anchors: Boxes, predictions: DensePredictions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode boxes and apply NMS: everything but the masks.

        Args:
            anchors: A anchors.
            predictions: of one image, without the batch dimension.

        Returns:
            boxes (D, 4) XYXY, relative to the image, not clipped, but each with a part inside the
            image; scores (D,) in descending order; classes (D,); coefficients (D, k). All are
            finite, even if the network's outputs are not; anchors with NaN scores are dropped.
        """
        has_background = self.head.has_background
        if (
            has_background
            and self.test_anchor_score_thresh > 0
            and is_eager_cpu(predictions.logits)
        ):
            # Elsewhere, waiting for the number of anchors takes longer than a softmax of all.
            likely = may_exceed(predictions.logits, self.test_anchor_score_thresh)
            likely = likely.nonzero().squeeze(1)
            anchors = anchors[likely]
            predictions = DensePredictions(*(x[likely] for x in predictions))
        scores = class_scores(predictions.logits, has_background)
        is_candidate = scores.amax(dim=1) > self.test_anchor_score_thresh
        candidates = is_candidate.nonzero().squeeze(1)
        boxes, kept = self.decode(anchors.tensor[candidates], predictions.deltas[candidates])
        boxes, candidates = boxes[kept], candidates[kept]
        scores = scores[candidates]
        detections = self.nms(
            boxes,
            scores,
            score_thresh=self.test_anchor_score_thresh,
            **self.nms_limits,
        )
        kept, classes, scores = detections
        above = (scores >= self.test_score_thresh).nonzero().squeeze(1)
        kept, classes, scores = kept[above], classes[above], scores[above]
        coefficients = predictions.coefficients[candidates[kept]]
        return boxes[kept], scores, classes, clamp_finite(coefficients)

    def decode(self, anchors: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            anchors: (A, 4).
            deltas: (..., A, 4), of the head.

        Returns:
            boxes (..., A, 4) XYXY, relative to the image; (..., A) bool, whether a box is kept, see
            `drop_empty_boxes`.
        """
        flat = clamp_finite(deltas).flatten(0, -2)
        boxes = self.box2box_transform.apply_deltas(flat, anchors.expand_as(deltas).flatten(0, -2))
        boxes = boxes.view_as(deltas)
        if not self.drop_empty_boxes:
            return boxes, torch.ones_like(boxes[..., 0], dtype=torch.bool)
        # Larger than rounding, so that boxes in pixels are not empty either.
        clipped = clip_boxes(boxes)
        return boxes, (clipped[..., 2:] - clipped[..., :2] > 1e-6).all(dim=-1)
