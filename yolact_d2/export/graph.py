"""Models as functions of tensors with outputs of fixed size, which exporters can trace.

The graphs use the networks of the models and the functions that eager inference uses. What differs:
they mark missing detections by score 0 and, unlike eager inference on a CPU, compute all anchors in
place of the candidates.
"""

import math
from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torchvision.ops import nms

from ..modeling import YOLACT, EmbedMask
from ..modeling.embedmask.head import EmbedMaskPredictions
from ..modeling.embedmask.losses import counting_pixels
from ..modeling.embedmask.masks import OUTSIDE, window_masks
from ..modeling.instance_detector import InstanceDetector, clamp_finite
from ..modeling.yolact.batch import batch_masks, choose_batch
from ..modeling.yolact.masks import clip_boxes, scale_boxes
from ..modeling.yolact.nms import fast_nms
from ..optimization import optimize_for_inference

OUTPUTS = ("masks", "coefficients", "full", "raw")
IMAGES = ("uint8", "float")


class ModelGraph(nn.Module):
    """A model from N images to detections.

    Attributes:
        inputs: an example of each input, by name. "image" is "uint8", (N, H, W, channels), or
            "float", (N, channels, H, W) in 0..255. Channels are in the order of INPUT.FORMAT.
        dynamic_shapes: the dimensions of the inputs that are not fixed.
        outputs, image: see :func:`build_graph`.
        input_size: (height, width) of the network input, in pixels.
        num_classes: C.
        output_names: of the tensors that it returns.
        mask_threshold: pixels of "masks", resized bilinearly, that exceed it belong to the object.

    It returns D detections of each image, the best first: boxes (N, D, 4) XYXY in pixels of the
    image, scores (N, D), 0 where there is no detection, classes (N, D) int64; for YOLACT++
    mask_scores (N, D); and, by `outputs`:

    * "masks": masks (N, D, h, w), at most 1, on a grid that covers the image, 0 far from the box.
    * "full": masks (N, D, H, W) bool, in pixels of the image.
    * "coefficients": coefficients (N, D, k) and prototypes (N, k, h, w).

    "raw" returns what NMS starts from, for A anchors: boxes (N, A, 4), scores (N, A, C),
    coefficients (N, A, k) and prototypes.
    """

    model: InstanceDetector
    inputs: dict[str, Tensor]
    dynamic_shapes: dict[str, dict[int, Any]]
    outputs: str
    image: str
    input_size: tuple[int, int]
    num_classes: int
    output_names: list[str]
    mask_threshold: float


def build_graph(
    model: InstanceDetector, outputs: str, image: str, size: tuple[int, int] | None = None
) -> ModelGraph:
    """
    Args:
        outputs: see :class:`ModelGraph`.
        image: "uint8" or "float", see :class:`ModelGraph`.
        size: (height, width) of EmbedMask's images, in pixels.

    Raises:
        TypeError, ValueError: naming what cannot be exported, and what can.
    """
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs is {outputs!r}, not one of: {', '.join(OUTPUTS)}")
    if image not in IMAGES:
        raise ValueError(f"image is {image!r}, not one of: {', '.join(IMAGES)}")
    if isinstance(model, YOLACT):
        if size is not None:
            raise ValueError("size is EmbedMask's: YOLACT resizes images to INPUT.IMAGE_SIZE")
        return YOLACTGraph(model, outputs, image).eval()
    if not isinstance(model, EmbedMask):
        raise TypeError(f"model must be a YOLACT or EmbedMask, got {type(model).__name__}")
    if image != "float" or outputs not in ("masks", "full"):
        raise ValueError('EmbedMask is exported with image "float" and outputs "masks" or "full"')
    divisor = model.backbone.size_divisibility
    if size is None or min(size) < 1 or size[0] % divisor or size[1] % divisor:
        raise ValueError(
            f"size is {size}: EmbedMask needs a height and width that are multiples of {divisor}"
        )
    return EmbedMaskGraph(model, outputs, size).eval()


class YOLACTGraph(ModelGraph):
    """YOLACT. "uint8" images may have any size, "float" images are S x S."""

    mask_threshold = 0.5

    def __init__(self, model: YOLACT, outputs: str, image: str):
        super().__init__()
        if outputs != "raw" and model.nms is not fast_nms:
            raise ValueError(
                f"MODEL.YOLACT.NMS is {model.nms.__name__}: only fast_nms, or the outputs raw "
                "(before NMS), can be exported"
            )
        self.model = optimize_for_inference(model, dtype=torch.float32).cpu()
        self.outputs, self.image = outputs, image
        side, channels = model.image_size, 1 if model.input_format == "L" else 3
        self.input_size, self.num_classes = (side, side), model.head.num_classes
        with torch.no_grad():
            # Also a grey image has as many channels as there are means.
            features = self.model.backbone(torch.zeros(1, len(model.pixel_mean), side, side))
            anchors = self.model.anchor_generator([features[x] for x in model.head_in_features])
        self.register_buffer("anchors", Boxes.cat(anchors).tensor, persistent=False)
        if image == "uint8":
            example = torch.zeros(2, side, side + 32, channels, dtype=torch.uint8)
            sizes = {1: Dim("height"), 2: Dim("width")}
        else:
            example, sizes = torch.zeros(2, channels, side, side), {}
        self.inputs, self.dynamic_shapes = {"image": example}, {"image": {0: Dim("batch"), **sizes}}
        classes = [] if outputs == "raw" else ["classes"]
        if classes and model.mask_iou_head is not None:
            classes.append("mask_scores")
        masks = ["masks"] if outputs in ("masks", "full") else ["coefficients", "prototypes"]
        self.output_names = ["boxes", "scores", *classes, *masks]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if self.image == "uint8":
            size = image.shape[1:3]
            image = image.permute(0, 3, 1, 2).float()
            image = F.interpolate(image, size=self.input_size, mode="bilinear")
        else:
            size = image.shape[2:]
        images = (image - model.pixel_mean) / model.pixel_std
        _, predictions, prototypes = model.forward_networks(images)
        prototypes = clamp_finite(prototypes)
        score_thresh = -1.0 if self.outputs == "raw" else model.test_anchor_score_thresh
        boxes, scores, coefficients = model.decode_batch(self.anchors, predictions, score_thresh)
        outputs = {"prototypes": prototypes}
        if self.outputs != "raw":
            found = choose_batch(boxes, scores, coefficients, **model.nms_limits)
            boxes, scores, outputs["classes"], coefficients = found
            scores = scores.masked_fill(scores < model.test_score_thresh, 0)
        scores = scores.clamp(min=0)
        if "masks" in self.output_names or "mask_scores" in self.output_names:
            masks, ious = batch_masks(found, prototypes, model.mask_iou_head)
            if ious is not None:
                outputs["mask_scores"] = scores * ious
            if self.outputs == "full":
                masks = F.interpolate(masks, size=size, mode="bilinear") > self.mask_threshold
            outputs["masks"] = masks
        outputs["boxes"] = scale_boxes(clip_boxes(boxes), size)
        outputs["scores"], outputs["coefficients"] = scores, coefficients
        return tuple(outputs[name] for name in self.output_names)


class EmbedMaskGraph(ModelGraph):
    """EmbedMask, for one "float" image, padded right and below to a fixed size with the mean.

    A second input, "image_size" (2,) int64, is the (height, width) of the image without padding, in
    pixels. The masks are (10 + ln P) / 10 of the probability P of each pixel to belong to the
    detection.
    """

    def __init__(self, model: EmbedMask, outputs: str, size: tuple[int, int]):
        super().__init__()
        self.model = optimize_for_inference(model, dtype=torch.float32).cpu()
        self.outputs, self.image, self.input_size = outputs, "float", size
        self.num_classes = model.head.cls_score.out_channels
        self.mask_threshold = 1 + math.log(model.test_mask_thresh) / -OUTSIDE
        image = torch.zeros(1, 1 if model.input_format == "L" else 3, *size)
        self.inputs = {"image": image, "image_size": torch.tensor(size)}
        self.dynamic_shapes = {"image": {}, "image_size": {}}
        with torch.no_grad():
            features = self.model.backbone(torch.zeros(1, len(model.pixel_mean), *size))
            features = [features[x] for x in model.head_in_features]
            anchors = self.model.anchor_generator(features)
        for i, level in enumerate(anchors):
            self.register_buffer(f"locations_{i}", level.get_centers(), persistent=False)
        self.num_levels = len(anchors)
        self.output_names = ["boxes", "scores", "classes", "masks"]

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        features = model.backbone((image - model.pixel_mean) / model.pixel_std)
        locations = [getattr(self, f"locations_{i}") for i in range(self.num_levels)]
        predictions = model.head([features[name] for name in model.head_in_features], locations)
        predictions = EmbedMaskPredictions(*(x[0] for x in predictions))
        boxes, scores, classes, kept = self.detect(locations, predictions, image_size)
        masks = window_masks(
            clamp_finite(predictions.pixels),
            clamp_finite(predictions.embeddings)[kept],
            predictions.margins.nan_to_num(nan=0.0)[kept],
            boxes,
        )
        if self.outputs == "full":
            masks = F.interpolate(masks[None], size=self.input_size, mode="bilinear")[0]
            masks = masks > self.mask_threshold
        return boxes[None], scores[None], classes[None], masks[None]

    def detect(
        self, locations: list[Tensor], predictions: EmbedMaskPredictions, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Like :meth:`EmbedMask.detect`, with zeros for missing detections."""
        model = self.model
        # Only what the model itself would pad to its stride takes part.
        divisor = model.backbone.size_divisibility
        padded = (image_size + divisor - 1) // divisor * divisor
        outside = (torch.cat(locations) >= padded.flip(0)).any(dim=1, keepdim=True)
        logits = predictions.logits.masked_fill(outside, -torch.inf)
        predictions = predictions._replace(logits=logits)
        scores, location, classes = model.choose_candidates(locations, predictions)
        boxes = model.decode(locations, predictions.distances, location, image_size.unbind())
        # A row of zeros stands for missing detections.
        boxes, scores = F.pad(boxes, (0, 0, 0, 1)), F.pad(scores, (0, 1))
        location, classes = F.pad(location, (0, 1)), F.pad(classes, (0, 1))
        # What torchvision's batched_nms does: boxes of different classes do not overlap.
        shifted = counting_pixels(boxes) + classes[:, None] * (max(self.input_size) + 1.0)
        kept = nms(shifted, scores, _round_down(model.test_nms_thresh))
        missing = kept.new_full((model.max_detections_per_image,), len(scores) - 1)
        kept = torch.cat([kept, missing])[: model.max_detections_per_image]
        scores = scores[kept]
        scores = scores.masked_fill(scores < model.test_score_thresh, 0).clamp(min=0)
        return boxes[kept], scores, classes[kept], location[kept]


def _round_down(x: float) -> float:
    """The largest float32 that is not above x. ONNX's NMS has no threshold between two of them."""
    rounded = torch.tensor(x)
    lower = torch.nextafter(rounded, torch.tensor(-torch.inf))
    return (rounded if rounded.item() <= x else lower).item()
