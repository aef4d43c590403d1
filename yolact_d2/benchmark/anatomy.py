"""Where a detector's stages begin and end: what the benchmark knows of meta-architectures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from detectron2.modeling.meta_arch import rcnn as rcnn_module
from detectron2.modeling.meta_arch import retinanet as retinanet_module
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from torch import nn


class Place(NamedTuple):
    """An attribute: of a model's part, or of a module of Detectron2 that the model calls into."""

    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name)

    def set(self, value: Any) -> None:
        # Not setattr: this may stand in front of a child module, which stays registered.
        vars(self.owner)[self.name] = value

    @contextmanager
    def replaced(self, wrap: Callable[[Any], Any]) -> Iterator[None]:
        """Put ``wrap(value)`` in its place for a while."""
        value = self.get()
        is_own = self.name in vars(self.owner)
        self.set(wrap(value))
        try:
            yield
        finally:
            if is_own:
                self.set(value)
            else:
                # A method or a child module: with nothing in front of it, it is found again.
                del vars(self.owner)[self.name]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model.

    NMS functions take boxes (N, 4) XYXY first and scores second: (N, C), or (N,) with the classes
    (N,) third. The model goes on with the very tensors that it gave them.
    """

    preprocess: Place
    """Makes a batch of images. What the model does before that counts as preprocessing, too."""
    backbone: Place
    final_nms: Place
    """The NMS that decides on the detections. It is called once for each image, in order."""
    threshold: Place
    """Only what scores higher than this reaches `final_nms`."""
    other_nms: tuple[Place, ...] = ()
    masks: tuple[Place, ...] = ()
    """Functions that make masks."""
    masks_follow_nms: bool = False
    """Whether everything after `final_nms` makes masks."""
    relative_boxes: bool = False
    """Whether boxes at `final_nms` are relative to the image, not in pixels of the input."""

    @property
    def has_masks(self) -> bool:
        return self.masks_follow_nms or bool(self.masks)

    def box_sizes(self, inputs: list[dict]) -> list[tuple[int, int]]:
        """(height, width) of each image, in the units of the boxes at `final_nms`."""
        return [(1, 1) if self.relative_boxes else tuple(x["image"].shape[-2:]) for x in inputs]


def _yolact(model: nn.Module) -> Anatomy:
    return Anatomy(
        preprocess=Place(model, "preprocess_image"),
        backbone=Place(model, "backbone"),
        final_nms=Place(model, "nms"),
        threshold=Place(model, "test_anchor_score_thresh"),
        masks_follow_nms=True,
        relative_boxes=True,
    )


def _rcnn(model: nn.Module) -> Anatomy:
    predictor = model.roi_heads.box_predictor
    if isinstance(predictor, nn.ModuleList):
        predictor = predictor[-1]  # of a cascade, the last stage decides
    masks = ()
    if model.roi_heads.mask_on:
        masks = (
            Place(model.roi_heads, "forward_with_given_boxes"),
            Place(rcnn_module, "detector_postprocess"),
        )
    return Anatomy(
        preprocess=Place(model, "preprocess_image"),
        backbone=Place(model, "backbone"),
        final_nms=Place(fast_rcnn, "batched_nms"),
        threshold=Place(predictor, "test_score_thresh"),
        other_nms=(Place(proposal_utils, "batched_nms"),),
        masks=masks,
    )


def _retinanet(model: nn.Module) -> Anatomy:
    return Anatomy(
        preprocess=Place(model, "preprocess_image"),
        backbone=Place(model, "backbone"),
        final_nms=Place(retinanet_module, "batched_nms"),
        threshold=Place(model, "test_score_thresh"),
    )


class Architecture(NamedTuple):
    anatomy: Callable[[nn.Module], Anatomy]
    num_classes: str
    """The key of the config."""


ARCHITECTURES: dict[str, Architecture] = {
    "YOLACT": Architecture(_yolact, "MODEL.YOLACT.NUM_CLASSES"),
    "GeneralizedRCNN": Architecture(_rcnn, "MODEL.ROI_HEADS.NUM_CLASSES"),
    "RetinaNet": Architecture(_retinanet, "MODEL.RETINANET.NUM_CLASSES"),
}


def anatomy_of(cfg, model: nn.Module) -> Anatomy:
    return ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE].anatomy(model)


def num_classes(cfg) -> int:
    """C, without background."""
    value = cfg
    for key in ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE].num_classes.split("."):
        value = value[key]
    return value
