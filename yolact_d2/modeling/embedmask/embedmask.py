from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..instance_detector import InstanceDetector, clamp_finite, output_size, split_crowds
from ..tracing import smaller
from .criterion import EmbedMaskCriterion
from .head import EmbedMaskHead, EmbedMaskPredictions
from .losses import counting_pixels
from .masks import MIN_THRESHOLD, STRIDE, paste_masks
from .targets import at_locations


@META_ARCH_REGISTRY.register()
class EmbedMask(InstanceDetector):
    """EmbedMask: embedding coupling for instance segmentation (IJCAI 2021, arXiv 1912.01954).

    For every location, FCOS's head predicts a class, a box and a centre-ness; here it also predicts
    a proposal embedding q and a margin m. In parallel, a tower on the finest level predicts an
    embedding p for every pixel. A pixel belongs to a proposal with the probability
    exp(-sum of m (p - q)^2).
    """

    config_node = "EMBEDMASK"
    networks = ("backbone", "head")

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: EmbedMaskHead,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_class_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        test_mask_thresh: float = 0.53,
        test_score_thresh: float = 0.0,
        max_detections_per_image: int = 100,
        vis_period: int = 0,
        input_format: str = "BGR",
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        """
        Args:
            backbone: returns the levels of a feature pyramid.
            head: see :class:`EmbedMaskHead`.
            head_in_features: names of the levels, finest first.
            anchor_generator: makes one anchor for each cell, whose centre is the location.
            criterion: computes the losses, see :class:`EmbedMaskCriterion`.
            pixel_mean, pixel_std: of each channel, for pixel values in 0..255.
            test_class_score_thresh: only pairs of location and class with a higher probability,
                before the centre-ness, are candidates.
            test_topk_candidates: number of best candidates of each level that enter NMS.
            test_nms_thresh: IoU above which NMS suppresses a box.
            test_mask_thresh: probability above which a pixel belongs to a mask.
            test_score_thresh: detections with a lower score are dropped after NMS.
            max_detections_per_image: number of best detections to keep.
            vis_period: draw a training image every this many iterations. 0: never.
            input_format: INPUT.FORMAT, the order of the channels of images.
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
        shapes = backbone.output_shape()
        self.strides = [shapes[name].stride for name in head_in_features]
        self.test_class_score_thresh = test_class_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.test_mask_thresh = test_mask_thresh
        self.to(memory_format=memory_format)

    @classmethod
    def from_config(cls, cfg):
        shared = super().from_config(cfg)
        shapes = shared["backbone"].output_shape()
        feature_shapes = [shapes[name] for name in shared["head_in_features"]]
        if set(shared["anchor_generator"].num_cell_anchors) != {1}:
            raise ValueError(
                "EmbedMask has one location a cell: MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS "
                "have one value for each level"
            )
        for shape, centers in zip(
            feature_shapes, first_centers(shared["anchor_generator"], len(feature_shapes))
        ):
            if centers != [shape.stride / 2] * 2:
                raise ValueError(
                    f"MODEL.ANCHOR_GENERATOR: at stride {shape.stride} the centre of the first "
                    f"anchor is {centers}, not the middle of its cell: EmbedMask needs "
                    "DefaultAnchorGenerator with OFFSET 0.5"
                )
        if feature_shapes[0].stride != 2 * STRIDE:
            raise ValueError(
                f"MODEL.EMBEDMASK.IN_FEATURES begins with stride {feature_shapes[0].stride}, not "
                f"{2 * STRIDE}"
            )
        node = cfg.MODEL.EMBEDMASK
        if not MIN_THRESHOLD <= node.MASK_THRESH_TEST < 1:
            raise ValueError(
                f"MODEL.EMBEDMASK.MASK_THRESH_TEST is {node.MASK_THRESH_TEST}, not in "
                f"{MIN_THRESHOLD}..1"
            )
        return {
            **shared,
            "head": EmbedMaskHead(cfg, feature_shapes),
            "criterion": EmbedMaskCriterion(cfg, [shape.stride for shape in feature_shapes]),
            "test_class_score_thresh": node.CLASS_SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "test_mask_thresh": node.MASK_THRESH_TEST,
        }

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
            In training, dict[str, Tensor] of the losses "loss_cls", "loss_box_reg",
            "loss_centerness", "loss_mask" and, if it has a weight, "loss_smooth".

            In inference, one dict for each image. Its "instances" have `pred_boxes`, `scores`,
            `pred_classes` and `pred_masks` (bool, N x height x width), in descending order of
            `scores`.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        locations = [anchors.get_centers() for anchors in self.anchor_generator(features)]
        predictions = self.head(features, locations)
        with torch.autocast(self.device.type, enabled=False):
            inference = partial(self.forward_inference, locations, predictions, images.image_sizes)
            if self.training:
                self.visualize_if_due(batched_inputs, inference)
                objects = [self.ground_truth(x) for x in batched_inputs]
                return self.criterion(locations, predictions, objects)
            return inference(batched_inputs)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize, pad and batch the images. A grayscale image becomes 3 channels."""
        images = [{"image": self.image_to_device(x)} for x in batched_inputs]
        batch = super().preprocess_image(images)
        return ImageList(self.to_network_input(batch.tensor), batch.image_sizes)

    def ground_truth(self, x: dict) -> Instances:
        """The objects of a training input, without crowd regions, on the model's device."""
        if "instances" in x:
            # While they are on the CPU: choosing some objects on a GPU would wait for it.
            x = {**x, "instances": split_crowds(x["instances"])[0]}
        return super().ground_truth(x)

    def forward_inference(
        self,
        locations: list[Tensor],
        predictions: EmbedMaskPredictions,
        input_sizes: Sequence[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """
        Args:
            locations: (Li, 2) of each level, x and y, in pixels of the network input.
            predictions: of N images.
            input_sizes: (height, width) of each image in the network input, without padding.
            batched_inputs: as in :meth:`forward`, of the first images or of all.

        Returns:
            as :meth:`forward`.
        """
        results = []
        for i, (x, input_size) in enumerate(zip(batched_inputs, input_sizes)):
            predictions_i = EmbedMaskPredictions(*(p[i] for p in predictions))
            instances = self.inference_single_image(
                locations, predictions_i, input_size, output_size(x, input_size)
            )
            results.append({"instances": instances})
        return results

    def inference_single_image(
        self,
        locations: list[Tensor],
        predictions: EmbedMaskPredictions,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        """
        Args:
            locations: (Li, 2) of each level, x and y, in pixels of the network input.
            predictions: of one image, without the batch dimension.
            input_size: (height, width) of the network input without padding.
            output_size: (height, width) of the result, in pixels.
        """
        boxes, scores, classes, kept = self.detect(locations, predictions, input_size)
        masks = paste_masks(
            clamp_finite(predictions.pixels),
            clamp_finite(predictions.embeddings[kept]),
            predictions.margins[kept].nan_to_num(nan=0.0),
            boxes,
            input_size,
            output_size,
            self.test_mask_thresh,
        )
        result = Instances(output_size)
        result.pred_boxes = Boxes(boxes.clone())
        result.pred_boxes.scale(output_size[1] / input_size[1], output_size[0] / input_size[0])
        result.scores = scores
        result.pred_classes = classes
        result.pred_masks = masks
        return result

    def detect(
        self,
        locations: list[Tensor],
        predictions: EmbedMaskPredictions,
        input_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Choose candidates, decode their boxes and apply NMS: everything but the masks.

        Args:
            locations, predictions, input_size: see :meth:`inference_single_image`.

        Returns:
            boxes (D, 4) XYXY, in pixels of the network input; scores (D,) in descending order;
            classes (D,); indices (D,) of the locations.
        """
        scores, location, classes = self.choose_candidates(locations, predictions)
        found = (scores >= 0).nonzero().squeeze(1)
        scores, location, classes = scores[found], location[found], classes[found]
        boxes = self.decode(locations, predictions.distances, location, input_size)
        kept = batched_nms(counting_pixels(boxes), scores, classes, self.test_nms_thresh)
        kept = kept[: self.max_detections_per_image]
        kept = kept[scores[kept] >= self.test_score_thresh]
        return boxes[kept], scores[kept], classes[kept], location[kept]

    def choose_candidates(
        self, locations: list[Tensor], predictions: EmbedMaskPredictions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of location and class of each level.

        Args:
            locations, predictions: see :meth:`inference_single_image`.

        Returns:
            scores (K,), indices (K,) of the locations and classes (K,). K is the same for all
            images of a size: if a level has fewer candidates, pairs with the score -1 follow them.
        """
        class_scores = predictions.logits.sigmoid()
        scores = class_scores * predictions.centerness.sigmoid().nan_to_num(nan=0.0)[:, None]
        scores = scores.masked_fill(~(class_scores > self.test_class_score_thresh), -1)
        num_classes = scores.shape[1]
        best, pairs = [], []
        first = 0
        for level in locations:
            here = scores[first : first + level.shape[0]].flatten()
            level_scores, index = here.topk(smaller(self.test_topk_candidates, here.shape[0]))
            best.append(level_scores)
            pairs.append(first * num_classes + index)
            first = first + level.shape[0]
        pair = torch.cat(pairs)
        return torch.cat(best), pair // num_classes, pair % num_classes

    def decode(
        self,
        locations: list[Tensor],
        distances: Tensor,
        chosen: Tensor,
        input_size: tuple[int, int],
    ) -> Tensor:
        """The boxes of some locations, clipped.

        Args:
            distances: (L, 4), of the head.
            chosen: (K,) indices of the locations.

        Returns:
            (K, 4) XYXY, in pixels of the network input.
        """
        strides = at_locations(self.strides, locations)
        offsets = clamp_finite(distances)[chosen] * strides[chosen, None]
        points = torch.cat(locations)[chosen]
        height, width = input_size
        corners = torch.stack([points - offsets[:, :2], points + offsets[:, 2:]], dim=1)
        x, y = corners.clamp(min=0).unbind(dim=2)
        boxes = torch.stack([x.clamp(max=width - 1), y.clamp(max=height - 1)], dim=2)
        return boxes.flatten(1)


def first_centers(anchor_generator: nn.Module, num_levels: int) -> list[list[float]]:
    """x and y of the first location of each level, in pixels."""
    cells = [torch.zeros(1, 1, 1, 1)] * num_levels
    return [anchors.get_centers()[0].tolist() for anchors in anchor_generator(cells)]
