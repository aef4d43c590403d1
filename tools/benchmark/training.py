"""Training steps on random ground truth."""

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.solver import build_optimizer
from detectron2.structures import BoxMode, Instances
from detectron2.utils.events import EventStorage

from .images import generate_image
from .models import ModelSpec, load_model
from .timing import StageClock

NUM_OBJECTS = 10  # in each image


def training_size(cfg: CfgNode, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of training images: S x S for YOLACT, else the largest of
    INPUT.MIN_SIZE_TRAIN.

    Args:
        image_size: (height, width) before they are resized.
    """
    if cfg.MODEL.META_ARCHITECTURE == "YOLACT":
        return cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE
    return ResizeShortestEdge.get_output_shape(
        *image_size, max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    )


def random_ground_truth(size: tuple[int, int], mask_format: str, seed: int) -> Instances:
    """NUM_OBJECTS ellipses of all sizes, of class 0.

    Args:
        size: (height, width).
        mask_format: INPUT.MASK_FORMAT.
    """
    rng = np.random.default_rng(seed)
    annotations = []
    for _ in range(NUM_OBJECTS):
        axes = rng.uniform(0.03, 0.3, 2) * size[::-1]  # half of the box
        center = rng.uniform(axes, size[::-1] - axes)
        polygon = cv2.ellipse2Poly(center.astype(int), axes.astype(int), 0, 0, 360, 12)
        annotations.append(
            {
                "bbox": [*polygon.min(axis=0), *polygon.max(axis=0)],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "segmentation": [polygon.ravel().astype(float)],
            }
        )
    return annotations_to_instances(annotations, size, mask_format)


class TrainingStep:
    """Training steps of a model on one batch, in float32."""

    def __init__(self, spec: ModelSpec, image_size: tuple[int, int], batch_size: int):
        """
        Args:
            image_size: see :func:`training_size`.
        """
        cfg = spec.load_cfg()
        cfg.SOLVER.BASE_LR = 0.0  # so that all steps do the same work
        self.model = load_model(cfg).train()
        self.optimizer = build_optimizer(cfg, self.model)
        self.size = training_size(cfg, image_size)
        self.batch = []
        for seed in range(batch_size):
            image = torch.from_numpy(generate_image(*self.size, seed)).permute(2, 0, 1)
            truth = random_ground_truth(self.size, cfg.INPUT.MASK_FORMAT, seed)
            self.batch.append({"image": image, "instances": truth})

    def __call__(self, _: None = None) -> dict[str, float]:
        """
        Returns:
            seconds of the "forward" pass with its losses, the "backward" pass and the "optimizer".
        """
        clock = StageClock()
        with EventStorage():
            with clock.stage("forward"):
                loss = sum(self.model(self.batch).values())
            with clock.stage("backward"):
                self.optimizer.zero_grad()
                loss.backward()
            with clock.stage("optimizer"):
                self.optimizer.step()
        return dict(clock.seconds)


def run_steps(spec: ModelSpec, image_size: tuple[int, int], batch_size: int) -> None:
    """Two training steps: from the first on the optimizer has its state."""
    step = TrainingStep(spec, image_size, batch_size)
    step()
    step()
