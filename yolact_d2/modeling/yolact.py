import math
from collections.abc import Callable, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    build_anchor_generator,
    build_backbone,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.names import translate
from .criterion import YOLACTCriterion
from .head import DensePredictions, YOLACTHead
from .mask_iou_head import MaskIoUHead
from .masks import paste_masks, scale_and_clip, scale_boxes, soft_masks
from .nms import Detections, get_nms
from .protonet import build_protonet
from .registry import lookup
from .weight_init import xavier_uniform_init

# No output of a network that works comes near it, and what is made of outputs up to here is finite.
_LARGEST_OUTPUT = 1e6


@META_ARCH_REGISTRY.register()
class YOLACT(DenseDetector):
    """YOLACT: real-time instance segmentation (arXiv 1904.02689), and YOLACT++ (arXiv 1912.06218).

    A fully-convolutional detector predicts, besides a class and a box, k coefficients for every
    anchor. In parallel the protonet predicts k prototype masks for the whole image. The mask of an
    instance is the linear combination of the prototypes with its coefficients, cropped to its box.
    YOLACT++ looks at each mask once more, and predicts how good it is.

    Inside the model boxes are relative to the image (0..1), as they are in the authors' code. Many
    anchors overlap a long object equally, so which of them it claims is up to the rounding, and
    only the same units give the same anchors.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: YOLACTHead,
        head_in_features: Sequence[str],
        protonet: nn.Module,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
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
    ):
        """
        Args:
            backbone: gives a feature pyramid.
            head: predicts classes, boxes and coefficients of all anchors.
            head_in_features: names of the levels, finest first.
            protonet: predicts the prototypes from the finest of them.
            anchor_generator: gives the anchors of each level.
            box2box_transform: how boxes are coded relative to anchors.
            criterion: gives the losses, see :class:`YOLACTCriterion`.
            num_classes: C, without background.
            image_size: S, the side of the square, in pixels, that images are resized to.
            pixel_mean, pixel_std: of each channel of the input, in 0..255 units.
            nms: a function of NMS_REGISTRY.
            mask_iou_head: predicts how good the masks are. Without it they have no scores of their
                own.
            test_anchor_score_thresh: anchors whose best score is not above it never reach NMS.
            test_nms_thresh, test_topk_candidates, max_detections_per_image: for `nms`.
            test_score_thresh: detections with a lower score are left out of the result.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.protonet = protonet
        self.mask_iou_head = mask_iou_head
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.criterion = criterion
        self.image_size = image_size

        # Only there to be trained: it makes the features of P3 richer.
        channels = backbone.output_shape()[head_in_features[0]].channels
        self.sem_seg_conv = Conv2d(channels, num_classes, kernel_size=1)
        xavier_uniform_init(self.sem_seg_conv)

        self.nms = nms
        self.test_anchor_score_thresh = test_anchor_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_score_thresh = test_score_thresh
        self.max_detections_per_image = max_detections_per_image

        # So that checkpoints of the authors' code load as they are.
        self.register_load_state_dict_pre_hook(_translate_names)

    @classmethod
    def from_config(cls, cfg):
        lookup(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
        lookup(
            ANCHOR_GENERATOR_REGISTRY,
            cfg.MODEL.ANCHOR_GENERATOR.NAME,
            "MODEL.ANCHOR_GENERATOR.NAME",
        )
        if not cfg.MODEL.MASK_ON:
            raise ValueError(
                "MODEL.MASK_ON is False, but YOLACT (and MODEL.YOLACT.MASK_IOU, its re-scoring) is "
                "nothing without its mask branch: set it to True"
            )
        if cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES < 1:
            raise ValueError(
                "MODEL.YOLACT.PROTONET.NUM_PROTOTYPES is "
                f"{cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES}; masks need 1 or more"
            )
        backbone = build_backbone(cfg)
        in_features = cfg.MODEL.YOLACT.IN_FEATURES
        shapes = backbone.output_shape()
        unknown = [name for name in in_features if name not in shapes]
        if unknown:
            raise ValueError(
                f"MODEL.YOLACT.IN_FEATURES: no level {unknown}; {cfg.MODEL.BACKBONE.NAME} gives "
                f"{sorted(shapes)}"
            )
        feature_shapes = [shapes[name] for name in in_features]
        mask_iou_head = None
        if cfg.MODEL.YOLACT.MASK_IOU.ENABLED:
            grid = 2 * math.ceil(cfg.INPUT.IMAGE_SIZE / feature_shapes[0].stride)
            mask_iou_head = MaskIoUHead(cfg, grid)
        return {
            "backbone": backbone,
            "head": YOLACTHead(cfg, feature_shapes),
            "head_in_features": in_features,
            "protonet": build_protonet(cfg, feature_shapes[0]),
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.YOLACT.BBOX_REG_WEIGHTS),
            "criterion": YOLACTCriterion(cfg),
            "num_classes": cfg.MODEL.YOLACT.NUM_CLASSES,
            "image_size": cfg.INPUT.IMAGE_SIZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "nms": get_nms(cfg.MODEL.YOLACT.NMS),
            "mask_iou_head": mask_iou_head,
            "test_anchor_score_thresh": cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.YOLACT.NMS_THRESH_TEST,
            "test_topk_candidates": cfg.MODEL.YOLACT.TOPK_CANDIDATES_TEST,
            "test_score_thresh": cfg.MODEL.YOLACT.SCORE_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: a list, one dict for each image, with

                * "image": (3, H, W) tensor in 0..255, channels in the order of INPUT.FORMAT. For
                  inference of any size; for training S x S, as :class:`YOLACTDatasetMapper` makes
                  it.
                * "instances": for training, `Instances` with `gt_boxes`, `gt_classes`, `gt_masks`
                  (`BitMasks`) and optionally `gt_iscrowd` (bool).
                * "height", "width": for inference, the resolution of the result. By default that
                  of "image".

        Returns:
            In training, dict[str, Tensor] of "loss_cls", "loss_box_reg", "loss_mask",
            "loss_sem_seg" and, of YOLACT++, "loss_mask_iou". In inference, a list with a dict for
            each image, in which "instances" has `pred_boxes`, `scores`, `pred_classes`,
            `pred_masks` (bool, N x height x width) and, of YOLACT++, `mask_scores`: the score times
            the predicted IoU of the mask. They are in the order of `scores`, best first.
        """
        if self.training or self.device.type != "cpu":
            return self.forward_batch(batched_inputs)
        # On a CPU tensors of more images than one leave the cache, which costs more than it saves.
        return [result for x in batched_inputs for result in self.forward_batch([x])]

    def forward_batch(self, batched_inputs: list[dict]):
        """:meth:`forward`, with all images in one batch."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        prototypes = self.protonet(features[0])
        anchors = Boxes.cat(self.anchor_generator(features))
        sem_seg_logits = self.sem_seg_conv(features[0]) if self.training else None

        # Mixed precision is for the network; what follows needs float32.
        predictions = DensePredictions(*(x.float() for x in predictions))
        prototypes = prototypes.float()
        with torch.autocast(self.device.type, enabled=False):
            if self.training:
                gt_instances = [self._ground_truth(x) for x in batched_inputs]
                return self.criterion(
                    anchors,
                    predictions,
                    prototypes,
                    sem_seg_logits.float(),
                    gt_instances,
                    self.mask_iou_head,
                )
            return self.forward_inference(anchors, predictions, prototypes, batched_inputs)

    def preprocess_image(self, batched_inputs: list[dict]) -> Tensor:
        """Resize to S x S, normalise and batch the images.

        Returns:
            (N, 3, S, S)
        """
        size = (self.image_size, self.image_size)
        images = []
        for x in batched_inputs:
            image = self._move_to_current_device(x["image"]).float()
            if image.dim() != 3 or image.shape[0] not in (1, len(self.pixel_mean)):
                raise ValueError(
                    f"an image must have the shape ({len(self.pixel_mean)}, H, W), or (1, H, W) if "
                    f"grey, got {tuple(image.shape)}"
                )
            if self.training and image.shape[1:] != size:
                raise ValueError(
                    f"training images must be {size[0]} x {size[1]} (INPUT.IMAGE_SIZE), got "
                    f"{tuple(image.shape[1:])}: is the loader built with YOLACTDatasetMapper?"
                )
            image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
            images.append((image - self.pixel_mean) / self.pixel_std)
        # In half precision if the network is, see :func:`optimize_for_inference`.
        images = torch.stack(images).to(next(self.backbone.parameters()).dtype)
        if images.device.type == "cpu":  # where convolutions are faster in it
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _ground_truth(self, x: dict) -> Instances:
        if "instances" not in x:
            raise ValueError(f"no ground truth in training, only {sorted(x)}")
        gt = x["instances"].to(self.device)
        if len(gt) == 0 and not gt.has("gt_masks"):
            # So does Detectron2's own mapper leave images without objects.
            gt.gt_masks = BitMasks(torch.zeros(0, *gt.image_size, dtype=torch.bool)).to(self.device)
        if not isinstance(gt.gt_masks, BitMasks):
            raise ValueError(
                f"gt_masks must be BitMasks, got {type(gt.gt_masks).__name__}: set "
                "INPUT.MASK_FORMAT to 'bitmask'"
            )
        return gt

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
            batched_inputs, returns: see :meth:`forward`.
        """
        results = []
        for i, x in enumerate(batched_inputs):
            height, width = x["image"].shape[-2:]
            output_size = (x.get("height", height), x.get("width", width))
            predictions_i = DensePredictions(*(p[i] for p in predictions))
            instances = self.inference_single_image(
                anchors, predictions_i, prototypes[i], output_size
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
            output_size: (height, width) of the result.
        """
        boxes, scores, classes, coefficients = self.detect(anchors, predictions)
        cells = scale_boxes(boxes, prototypes.shape[1:])
        masks = soft_masks(bounded(prototypes), coefficients, cells)

        result = Instances(output_size)
        result.pred_boxes = Boxes(scale_and_clip(boxes, output_size))
        result.scores = scores
        result.pred_classes = classes
        if self.mask_iou_head is not None:
            result.mask_scores = scores * self.mask_iou_head(masks, classes)
        result.pred_masks = paste_masks(masks, cells, output_size)
        return result

    def detect(
        self, anchors: Boxes, predictions: DensePredictions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The detections of one image, best first: all of the result but the masks.

        Args:
            anchors: A anchors.
            predictions: of one image, without the batch dimension.

        Returns:
            boxes (D, 4) XYXY, relative to the image and not clipped; scores (D,); classes (D,);
            coefficients (D, k). All are finite, whatever the network gave; anchors of which it gave
            no finite scores are no detections.
        """
        scores = predictions.logits.softmax(dim=-1)[:, :-1]
        candidates = (scores.amax(dim=1) > self.test_anchor_score_thresh).nonzero().squeeze(1)
        boxes = self.box2box_transform.apply_deltas(
            bounded(predictions.deltas[candidates]), anchors.tensor[candidates]
        )
        detections = self.nms(
            boxes,
            scores[candidates],
            score_thresh=self.test_anchor_score_thresh,
            iou_thresh=self.test_nms_thresh,
            topk=self.test_topk_candidates,
            max_detections=self.max_detections_per_image,
        )
        # Best first, so those with a high enough score are the first.
        num_kept = int((detections.scores >= self.test_score_thresh).sum())
        kept, classes, scores = (x[:num_kept] for x in detections)
        return boxes[kept], scores, classes, bounded(predictions.coefficients[candidates[kept]])


def _translate_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Rename the tensors of this model in `state_dict`, in place."""
    names = [name for name in state_dict if name.startswith(prefix)]
    tensors = {name[len(prefix) :]: state_dict.pop(name) for name in names}
    state_dict.update({prefix + name: x for name, x in translate(tensors).items()})


def bounded(outputs: Tensor) -> Tensor:
    """Outputs of a network, of which those that overflowed are made finite: NaN becomes 0, and
    the others get as large as +-1e6 only."""
    return outputs.clamp(-_LARGEST_OUTPUT, _LARGEST_OUTPUT).nan_to_num(nan=0.0)
