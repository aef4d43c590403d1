from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.layers import shapes_to_tensor
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    build_anchor_generator,
    build_backbone,
)
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..checkpoint.names import translate
from .registry import get_registered
from .scripting import ScriptableDetector
from .tracing import is_tracing


class InstanceDetector(DenseDetector):
    """What the meta-architectures of this project share: their checks of configs and inputs, and
    the names of the authors' checkpoints."""

    config_node: str
    """The node of ``cfg.MODEL`` that has the keys of the meta-architecture."""
    networks: Sequence[str]
    """Names of the modules that hold the convolutions."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_score_thresh: float,
        max_detections_per_image: int,
        vis_period: int,
        input_format: str,
    ):
        super().__init__(
            backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.criterion = criterion
        self.test_score_thresh = test_score_thresh
        self.max_detections_per_image = max_detections_per_image
        self.vis_period = vis_period
        self.input_format = input_format
        # Checkpoints of the authors' code load under their own names.
        self.register_load_state_dict_pre_hook(_translate_names)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """The arguments that all meta-architectures have.

        Raises:
            ValueError: naming the key that is wrong.
        """
        node, name = cfg.MODEL[cls.config_node], f"MODEL.{cls.config_node}"
        get_registered(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
        get_registered(
            ANCHOR_GENERATOR_REGISTRY,
            cfg.MODEL.ANCHOR_GENERATOR.NAME,
            "MODEL.ANCHOR_GENERATOR.NAME",
        )
        if not cfg.MODEL.MASK_ON:
            raise ValueError(
                f"MODEL.MASK_ON is False, but {cls.__name__} always predicts masks: set it to True"
            )
        if cfg.TEST.AUG.ENABLED:
            raise ValueError(
                f"TEST.AUG.ENABLED is True, but {cls.__name__} has no test-time augmentation: set "
                "it to False"
            )
        if node.NUM_CLASSES < 1:
            raise ValueError(f"{name}.NUM_CLASSES is {node.NUM_CLASSES}, not 1 or more")
        if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
            raise ValueError("TEST.DETECTIONS_PER_IMAGE must be 1 or more")
        if cfg.INPUT.FORMAT not in ("RGB", "BGR", "L"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, not one of: RGB, BGR, L")
        mean, std = len(cfg.MODEL.PIXEL_MEAN), len(cfg.MODEL.PIXEL_STD)
        is_grey = cfg.INPUT.FORMAT == "L"
        if mean != std or mean not in ((1, 3) if is_grey else (3,)):
            raise ValueError(
                f"MODEL.PIXEL_MEAN has {mean} values and MODEL.PIXEL_STD {std}; for INPUT.FORMAT "
                f"{cfg.INPUT.FORMAT!r} both have {'1 or 3' if is_grey else '3'}"
            )
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        unknown = [level for level in node.IN_FEATURES if level not in shapes]
        if unknown:
            raise ValueError(
                f"{name}.IN_FEATURES: no level {unknown}; {cfg.MODEL.BACKBONE.NAME} gives "
                f"{sorted(shapes)}"
            )
        # Detectron2's demo sets this key to its --confidence-threshold. The default is 0.05.
        demo_thresh = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
        on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
        return {
            "backbone": backbone,
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, [shapes[x] for x in node.IN_FEATURES]),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "test_score_thresh": max(
                node.SCORE_THRESH_TEST, demo_thresh if demo_thresh > 0.05 else 0.0
            ),
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
            # A CPU would convert other weights in each call, see to_network_input.
            "memory_format": torch.channels_last if on_cpu else torch.contiguous_format,
        }

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles in place of the model."""
        return ScriptableDetector(self)

    def image_to_device(self, x: dict) -> Tensor:
        """The image of an input, (3, H, W) or (1, H, W) float32.

        Raises:
            ValueError: if it has another shape.
        """
        image = self._move_to_current_device(x["image"]).float()
        if image.dim() != 3 or image.shape[0] not in (1, len(self.pixel_mean)):
            raise ValueError(
                f"an image must have the shape ({len(self.pixel_mean)}, H, W), or (1, H, W) if "
                f"grayscale, got {tuple(image.shape)}"
            )
        return image

    def to_network_input(self, batch: Tensor) -> Tensor:
        """Normalized images (N, 3, H, W), in the dtype and memory format of the network."""
        # optimize_for_inference may have converted the network to half precision.
        batch = batch.to(next(self.backbone.parameters()).dtype)
        if batch.device.type == "cpu":  # whose convolutions are faster in channels-last order
            batch = batch.contiguous(memory_format=torch.channels_last)
        return batch

    def ground_truth(self, x: dict) -> Instances:
        """The objects of a training input, with `gt_masks` (`BitMasks`), on the model's device.

        Raises:
            ValueError: if there is no ground truth, a box has no area, or masks are polygons.
        """
        if "instances" not in x:
            raise ValueError(f"no ground truth in training, only {sorted(x)}")
        # While they are on the CPU: on a GPU this would wait for it.
        boxes = x["instances"].gt_boxes
        if not boxes.nonempty().all():
            box = boxes[~boxes.nonempty()].tensor[0].tolist()
            raise ValueError(
                f"{x.get('file_name', 'an image')}: gt_boxes has {box}, but boxes must be XYXY "
                "with x1 < x2 and y1 < y2"
            )
        gt = x["instances"].to(self.device)
        if len(gt) == 0 and not gt.has("gt_masks"):
            # Detectron2's DatasetMapper sets no gt_masks for images without objects.
            gt.gt_masks = BitMasks(torch.zeros(0, *gt.image_size, dtype=torch.bool)).to(self.device)
        if not isinstance(gt.gt_masks, BitMasks):
            raise ValueError(
                f"gt_masks must be BitMasks, got {type(gt.gt_masks).__name__}: set "
                "INPUT.MASK_FORMAT to 'bitmask'"
            )
        return gt

    def visualize_if_due(
        self,
        batched_inputs: list[dict],
        inference: Callable[[list[dict]], list[dict[str, Instances]]],
    ) -> None:
        """Draw the first training image every `vis_period` iterations.

        Args:
            batched_inputs: training inputs.
            inference: returns the detections of the first images of the batch, given their inputs.
        """
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            with torch.no_grad():
                results = inference([{"image": batched_inputs[0]["image"]}])
            self.visualize_training(batched_inputs, [x["instances"] for x in results])

    def visualize_training(self, batched_inputs: list[dict], results: list[Instances]) -> None:
        """Put a drawing of the first image into the event storage: the ground truth, and below it
        the 20 best detections.

        Args:
            batched_inputs: training inputs.
            results: detections, in pixels of "image".
        """
        from detectron2.utils.visualizer import Visualizer

        x = batched_inputs[0]
        image = convert_image_to_rgb(x["image"].permute(1, 2, 0).clamp(0, 255), self.input_format)
        gt, found = self.ground_truth(x).to("cpu"), results[0][:20].to("cpu")
        drawings = [
            Visualizer(image).overlay_instances(boxes=boxes, masks=masks.tensor).get_image()
            for boxes, masks in (
                (gt.gt_boxes, gt.gt_masks),
                (found.pred_boxes, BitMasks(found.pred_masks)),
            )
        ]
        get_event_storage().put_image(
            "Top: ground truth. Bottom: 20 best detections.",
            np.concatenate(drawings).transpose(2, 0, 1),
        )


def log_anchor_counts(
    num_positives: int | Tensor, num_negatives: int | Tensor, num_images: int
) -> None:
    """Put the mean numbers of anchors in the class loss of an image into the event storage, if
    there is one."""
    if has_event_storage():
        storage = get_event_storage()
        storage.put_scalar("num_pos_anchors", num_positives / num_images)
        storage.put_scalar("num_neg_anchors", num_negatives / num_images)


def output_size(x: dict, image_size: Any) -> Any:
    """(height, width) that an input asks for, by default that of its image, in pixels."""
    if is_tracing():
        return shapes_to_tensor([*image_size]) if torch.jit.is_tracing() else image_size
    return int(x.get("height", image_size[0])), int(x.get("width", image_size[1]))


def split_crowds(gt: Instances) -> tuple[Instances, Instances]:
    """Split the ground truth of an image into objects and crowd regions."""
    if not gt.has("gt_iscrowd"):
        return gt, gt[:0]
    is_crowd = gt.gt_iscrowd.bool()
    if not is_crowd.any():  # the usual case, in which indexing would only copy the masks
        return gt, gt[:0]
    return gt[~is_crowd], gt[is_crowd]


def clamp_finite(x: Tensor, limit: float = 1e6) -> Tensor:
    """Clamp to +-`limit` and replace NaN by 0, so that outputs of a network that overflowed do not
    turn detections into NaN. Outputs of a working network are far below the limit."""
    return x.clamp(-limit, limit).nan_to_num(nan=0.0)


def _translate_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Rename the authors' tensors in `state_dict` to this model's names, in place."""
    names = [name for name in state_dict if name.startswith(prefix)]
    tensors = {name[len(prefix) :]: state_dict.pop(name) for name in names}
    state_dict.update({prefix + name: x for name, x in translate(tensors).items()})
