"""Models: from the words of the command line to a detector that takes BGR images."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock
from detectron2.structures import Instances
from torch import nn

from yolact_d2 import load_config
from yolact_d2.checkpoint import SafeCheckpointer, YOLACTCheckpointer, check_weights_exist
from yolact_d2.modeling import InstanceDetector
from yolact_d2.modeling.weight_init import scale_residual_branches

from .architectures import get_architecture
from .timing import StageClock, timer
from .variants import apply_variant


class ModelSpec(NamedTuple):
    """A model to measure."""

    label: str
    config_file: str
    opts: tuple[str, ...] = ()
    """Alternating keys and values that override the file's."""

    def load_cfg(self) -> CfgNode:
        return load_config(self.config_file, self.opts)


def parse_model(words: Sequence[str], device: str | None = None) -> ModelSpec:
    """
    Args:
        words: LABEL CONFIG [KEY VALUE ...]. Without MODEL.WEIGHTS among the keys the weights are
            random, and every score is high enough for a detection.
        device: MODEL.DEVICE; by default the config's, or the CPU if there is no GPU.

    Raises:
        ValueError: naming the wrong word.
    """
    if len(words) < 2 or len(words) % 2:
        raise ValueError(f"a model is LABEL CONFIG [KEY VALUE ...], not {' '.join(words)!r}")
    label, config, *opts = words
    spec = ModelSpec(label, config, tuple(opts))
    try:
        cfg = spec.load_cfg()
        architecture = get_architecture(cfg)
        if cfg.MODEL.WEIGHTS and "MODEL.WEIGHTS" in opts[::2]:
            check_weights_exist(cfg.MODEL.WEIGHTS)
        else:
            opts += ["MODEL.WEIGHTS", "", architecture.score_threshold, "0.0"]
    except (OSError, ValueError) as error:
        raise ValueError(f"{label}: {error}") from error
    opts += ["MODEL.DEVICE", device or cfg.MODEL.DEVICE]
    return spec._replace(opts=tuple(opts))


def load_model(cfg: CfgNode) -> nn.Module:
    """The model of a config in evaluation mode. Random weights are the same at every call."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if not cfg.MODEL.WEIGHTS:
        limit_random_features(model)
    elif isinstance(model, InstanceDetector):
        YOLACTCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    else:
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def limit_random_features(model: nn.Module) -> None:
    """Keep the features of an untrained ResNet finite.

    With batch norm frozen at its initial values they grow with each residual block, until no box
    of an R-CNN is finite and its box and mask heads have nothing to do.
    """
    kinds = (BasicBlock, BottleneckBlock, DeformBottleneckBlock)
    blocks = [module for module in model.modules() if isinstance(module, kinds)]
    last_convs = [b.conv2 if isinstance(b, BasicBlock) else b.conv3 for b in blocks]
    scale_residual_branches([conv.norm for conv in last_convs])


class Detector:
    """A model in one variant, from BGR images to `Instances`."""

    def __init__(self, spec: ModelSpec, variant: str = "float32"):
        """
        Args:
            variant: see :func:`apply_variant`.
        """
        self.spec, self.variant = spec, variant
        self.factory = partial(Detector, spec, variant)
        self.label = spec.label if variant == "float32" else f"{spec.label}, {variant}"
        self.cfg = spec.load_cfg()
        self.model = apply_variant(variant, load_model(self.cfg))
        self._resize = ResizeShortestEdge(
            [self.cfg.INPUT.MIN_SIZE_TEST] * 2, self.cfg.INPUT.MAX_SIZE_TEST
        )

    def preprocess(self, images: Sequence[np.ndarray]) -> list[dict]:
        """What `DefaultPredictor` does before the model, for several images."""
        inputs = []
        for image in images:
            height, width = image.shape[:2]
            if self.cfg.INPUT.FORMAT == "RGB":
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            image = self._resize.get_transform(image).apply_image(image)
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            inputs.append({"image": image, "height": height, "width": width})
        return inputs

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """
        Args:
            images: (H, W, 3) uint8 each, BGR.
        """
        return [output["instances"] for output in self.model(self.preprocess(images))]

    def count(self, images: Sequence[np.ndarray]) -> list[int]:
        return [len(found) for found in self(images)]

    def time(self, images: Sequence[np.ndarray]) -> float:
        """Seconds of a call."""
        start = timer()
        self(images)
        return timer() - start

    @torch.no_grad()
    def time_stages(
        self, images: Sequence[np.ndarray], now: Callable[[], float] = timer
    ) -> dict[str, float]:
        """Seconds of each stage of a call, which add up to the whole."""
        clock = StageClock(now)
        with ExitStack() as stack:
            for stage, owner, name in get_architecture(self.cfg).calls(self.model):
                timed = clock.stage(stage)(getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
            with clock.stage("preprocess"):
                inputs = self.preprocess(images)
            with clock.stage("heads"):
                self.model(inputs)
        return dict(clock.seconds)
