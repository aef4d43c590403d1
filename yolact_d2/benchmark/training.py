"""Training iterations on made-up ground truth."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from .anatomy import num_classes
from .clock import Now, StageClock, device_clock
from .pictures import generate_picture
from .planted import random_boxes
from .runner import load_model
from .specs import ModelSpec

PARTS = ("forward", "backward", "step")
_POLYGON_POINTS = 32


@dataclass(frozen=True)
class TrainingSettings:
    batch_size: int = 2
    num_objects: int = 10
    """Of each image."""


def training_size(cfg: CfgNode, picture_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the images that a model is trained with: S x S for YOLACT, for others the
    largest of INPUT.MIN_SIZE_TRAIN.

    Args:
        picture_size: (height, width) before they are resized.
    """
    if cfg.MODEL.META_ARCHITECTURE == "YOLACT":
        return cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE
    return ResizeShortestEdge.get_output_shape(
        *picture_size, max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    )


def ellipses(boxes: np.ndarray) -> list[np.ndarray]:
    """The polygons (P, 2), in (x, y), of the ellipses in boxes (N, 4) XYXY."""
    angles = np.linspace(0, 2 * np.pi, _POLYGON_POINTS, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2
    return [(b[:2] + b[2:]) / 2 + unit * (b[2:] - b[:2]) for b in boxes]


def random_ground_truth(
    size: tuple[int, int], num_objects: int, classes: int, mask_format: str, seed: int
) -> Instances:
    """
    Args:
        size: (height, width).
        classes: C, without background.
        mask_format: "bitmask" or "polygon", as INPUT.MASK_FORMAT.
    """
    height, width = size
    boxes = random_boxes(num_objects, seed) * [width, height, width, height]
    polygons = ellipses(boxes)
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    truth.gt_classes = torch.arange(num_objects) % classes
    if mask_format == "polygon":
        truth.gt_masks = PolygonMasks([[polygon.ravel()] for polygon in polygons])
    else:
        masks = np.zeros((num_objects, height, width), np.uint8)
        for mask, polygon in zip(masks, polygons):
            cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
        truth.gt_masks = BitMasks(torch.from_numpy(masks).bool())
    return truth


class TrainingStep:
    """Iterations of a model on one batch, in float32."""

    def __init__(self, spec: ModelSpec, picture_size: tuple[int, int], settings: TrainingSettings):
        """
        Args:
            picture_size: (height, width), see :func:`training_size`.
        """
        cfg = spec.load()
        # The weights stay where they are, so that all iterations do the same work.
        cfg.SOLVER.BASE_LR = 0.0
        self.label = spec.label
        self.model = load_model(cfg)[0].train()
        self.optimizer = build_optimizer(cfg, self.model)
        self.size = training_size(cfg, picture_size)
        self.batch = []
        for seed in range(settings.batch_size):
            image = generate_picture(*self.size, seed).transpose(2, 0, 1)
            truth = random_ground_truth(
                self.size, settings.num_objects, num_classes(cfg), cfg.INPUT.MASK_FORMAT, seed
            )
            self.batch.append({"image": torch.as_tensor(image.copy()), "instances": truth})

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, now: Now = None) -> dict[str, float]:
        """One iteration.

        Args:
            now: by default the device's clock.

        Returns:
            seconds of the forward pass with the losses, of the backward pass and of the step.
        """
        clock = StageClock(now or device_clock(self.device))
        with EventStorage():
            clock.start("forward")
            loss = sum(self.model(self.batch).values())
            clock.turn_to("backward")
            self.optimizer.zero_grad()
            loss.backward()
            clock.turn_to("step")
            self.optimizer.step()
            return clock.stop()
