"""A model that is ready to be measured: from BGR arrays to `Instances`."""

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from ..checkpoint import YOLACTCheckpointer
from .anatomy import anatomy_of, num_classes
from .clock import Now, StageClock, observed
from .forcing import ForcedDetections, balance_features
from .pictures import generate_picture
from .specs import ModelSpec
from .variants import apply_variant


class Preprocess:
    """What :class:`DefaultPredictor` does before the model, for any number of pictures."""

    def __init__(self, cfg: CfgNode):
        self._resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self._input_format = cfg.INPUT.FORMAT

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[dict]:
        """
        Args:
            pictures: (H, W, 3) each, BGR.

        Returns:
            what the model takes.
        """
        inputs = []
        for picture in pictures:
            height, width = picture.shape[:2]
            if self._input_format == "RGB":
                picture = picture[:, :, ::-1]
            image = self._resize.get_transform(picture).apply_image(picture)
            image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
            inputs.append({"image": image, "height": height, "width": width})
        return inputs


def load_model(cfg: CfgNode) -> tuple[nn.Module, float]:
    """The model of a config, for inference, and the seconds that it took to build and load it.

    Random weights, where ``cfg.MODEL.WEIGHTS`` is empty, are always the same ones.

    Raises:
        ValueError: if the weights do not fit, or the config is wrong.
    """
    start = time.perf_counter()
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        YOLACTCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    seconds = time.perf_counter() - start
    if not cfg.MODEL.WEIGHTS:
        inputs = Preprocess(cfg)([generate_picture(256, 256, seed=0)])
        balance_features(model.backbone, lambda: model(inputs))
    return model, seconds


class Runner:
    """A model, and what is needed to run it and to look into it."""

    def __init__(self, spec: ModelSpec, variant: str = "float32", num_detections: int = 100):
        """
        Args:
            variant: see :func:`apply_variant`.
            num_detections: of a picture; looked at only if the weights are random.
        """
        self.spec, self.variant = spec, variant
        self.cfg = spec.load()
        if spec.random:
            self.cfg.TEST.DETECTIONS_PER_IMAGE = num_detections
        model, self.load_seconds = load_model(self.cfg)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.model = apply_variant(variant, model)
        self.preprocess = Preprocess(self.cfg)
        self.anatomy = anatomy_of(self.cfg, self.model)
        self.forcing = None
        if spec.random:
            classes = num_classes(self.cfg)
            self.forcing = ForcedDetections(self.anatomy, classes, num_detections)

    @property
    def label(self) -> str:
        """Its name in the tables."""
        return (
            self.spec.label if self.variant == "float32" else f"{self.spec.label}, {self.variant}"
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def calibrate(self, pictures: Iterable[np.ndarray]) -> None:
        """Get ready for these pictures, see :meth:`ForcedDetections.calibrate`."""
        if self.forcing is not None:
            self.forcing.calibrate(self.model, (self.preprocess([x]) for x in pictures))

    def active(self, inputs: list[dict]):
        """While it lasts, the model may be called once, with `inputs`."""
        return nullcontext() if self.forcing is None else self.forcing.active(inputs)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Instances]:
        """
        Args:
            pictures: (H, W, 3) each, BGR.
        """
        inputs = self.preprocess(pictures)
        with self.active(inputs):
            return [output["instances"] for output in self.model(inputs)]

    @torch.no_grad()
    def stages(self, pictures: Sequence[np.ndarray], now: Now) -> dict[str, float]:
        """Seconds of each stage of a call, see :class:`StageClock`."""
        clock = StageClock(now)
        clock.start("preprocess")
        inputs = self.preprocess(pictures)
        with self.active(inputs), observed(self.anatomy, clock):
            self.model(inputs)
        return clock.stop()
