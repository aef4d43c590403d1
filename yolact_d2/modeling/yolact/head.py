from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import get_registered
from ..weight_init import prior_bias, xavier_uniform_init

YOLACT_HEAD_REGISTRY = Registry("YOLACT_HEAD")
YOLACT_HEAD_REGISTRY.__doc__ = """
Heads that predict classes, boxes and mask coefficients of all anchors.

The registered object is called with `obj(cfg, input_shape: list[ShapeSpec])` and returns a module
with the attributes `num_classes` and `has_background`, which maps the feature maps to
:class:`DensePredictions`.
"""


def build_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the head that ``cfg.MODEL.YOLACT.HEAD`` names."""
    head = get_registered(YOLACT_HEAD_REGISTRY, cfg.MODEL.YOLACT.HEAD, "MODEL.YOLACT.HEAD")
    return head(cfg, input_shape)


class DensePredictions(NamedTuple):
    """Predictions of the head for all A anchors of N images, in the order of the anchors."""

    logits: Tensor
    """(N, A, C + 1) class logits, background last; without background (N, A, C)."""
    deltas: Tensor
    """(N, A, 4) box regression, in the model's coding of boxes."""
    coefficients: Tensor
    """(N, A, k) mask coefficients, in -1..1."""


def class_scores(logits: Tensor, has_background: bool) -> Tensor:
    """Probabilities (..., C) of the classes, given logits (..., C + 1) with background last, or
    (..., C) without background: then a class does not depend on the others."""
    return logits.softmax(dim=-1)[..., :-1] if has_background else logits.sigmoid()


def has_background(cfg) -> bool:
    """Whether background is a class, by ``cfg.MODEL.YOLACT.CLS_LOSS_TYPE``."""
    return cfg.MODEL.YOLACT.CLS_LOSS_TYPE == "softmax"


@YOLACT_HEAD_REGISTRY.register()
class YOLACTHead(nn.Module):
    """The prediction head, shared by all pyramid levels (arXiv 1904.02689, figure 4)."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        conv_dim: int,
        num_anchors: int,
        num_classes: int,
        num_prototypes: int,
        has_background: bool = True,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            in_channels: channels of the feature maps.
            conv_dim: output channels of the convolution that the three branches share.
            num_anchors: number of anchors at each feature map location.
            num_classes: C, number of foreground classes.
            num_prototypes: k.
            has_background: see :func:`class_scores`.
            prior_prob: probability of each class at the start of training, without background.
        """
        super().__init__()
        self.num_classes = num_classes
        self.has_background = has_background
        self.num_prototypes = num_prototypes
        num_scores = num_classes + has_background
        self.conv = Conv2d(in_channels, conv_dim, kernel_size=3, padding=1, activation=F.relu_)
        self.cls_score = Conv2d(conv_dim, num_anchors * num_scores, kernel_size=3, padding=1)
        self.bbox_pred = Conv2d(conv_dim, num_anchors * 4, kernel_size=3, padding=1)
        self.mask_coefficients = Conv2d(
            conv_dim, num_anchors * num_prototypes, kernel_size=3, padding=1
        )
        xavier_uniform_init(self)
        if not has_background:
            nn.init.constant_(self.cls_score.bias, prior_bias(prior_prob))  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        return {
            "in_channels": input_shape[0].channels,
            "conv_dim": cfg.MODEL.YOLACT.HEAD_CONV_DIM,
            **_outputs(cfg, input_shape),
        }

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """
        Args:
            features: feature maps (N, in_channels, Hi, Wi), finest first.
        """
        logits, deltas, coefficients = [], [], []
        for feature in features:
            x = self.conv(feature)
            logits.append(self.cls_score(x))
            deltas.append(self.bbox_pred(x))
            coefficients.append(self.mask_coefficients(x))
        return _in_order(self, logits, deltas, coefficients)


@YOLACT_HEAD_REGISTRY.register()
class DecoupledHead(RetinaNetHead):
    """A tower of convolutions with group norm for the classes, and another for boxes and mask
    coefficients, as in RetinaNet and FCOS; shared by all pyramid levels."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        conv_dim: int,
        num_convs: int,
        num_anchors: int,
        num_classes: int,
        num_prototypes: int,
        has_background: bool = True,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            conv_dim: output channels of the convolutions of the towers.
            num_convs: number of convolutions of each tower.
            in_channels, num_anchors, num_classes, num_prototypes, has_background, prior_prob: see
                :class:`YOLACTHead`.
        """
        super().__init__(
            input_shape=[ShapeSpec(channels=in_channels)],
            num_classes=num_classes + has_background,
            num_anchors=num_anchors,
            conv_dims=[conv_dim] * num_convs,
            norm="GN",
            prior_prob=prior_prob,
        )
        self.num_classes = num_classes
        self.has_background = has_background
        self.num_prototypes = num_prototypes
        self.mask_coefficients = Conv2d(
            conv_dim, num_anchors * num_prototypes, kernel_size=3, padding=1
        )
        xavier_uniform_init(self.mask_coefficients)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        node = cfg.MODEL.YOLACT
        if node.HEAD_CONV_DIM % 32 or node.HEAD_CONV_DIM < 64:
            raise ValueError(
                f"MODEL.YOLACT.HEAD_CONV_DIM is {node.HEAD_CONV_DIM}, not 64 or a larger multiple "
                "of 32: the group norm of DecoupledHead has 32 groups, and one channel of a level "
                "of one cell has no variance"
            )
        if node.HEAD_NUM_CONVS < 1:
            raise ValueError(f"MODEL.YOLACT.HEAD_NUM_CONVS is {node.HEAD_NUM_CONVS}, not 1 or more")
        return {
            "in_channels": input_shape[0].channels,
            "conv_dim": node.HEAD_CONV_DIM,
            "num_convs": node.HEAD_NUM_CONVS,
            **_outputs(cfg, input_shape),
        }

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """
        Args:
            features: feature maps (N, in_channels, Hi, Wi), finest first.
        """
        logits, deltas, coefficients = [], [], []
        for feature in features:
            logits.append(self.cls_score(self.cls_subnet(feature)))
            x = self.bbox_subnet(feature)
            deltas.append(self.bbox_pred(x))
            coefficients.append(self.mask_coefficients(x))
        return _in_order(self, logits, deltas, coefficients)


def _outputs(cfg, input_shape: list[ShapeSpec]) -> dict[str, Any]:
    """What all heads predict, by the config."""
    num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors
    if len(set(num_anchors)) != 1:
        raise ValueError(
            "all levels share one head, so each needs the same number of anchors in "
            f"MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS, got {num_anchors}"
        )
    node = cfg.MODEL.YOLACT
    if not 0 < node.PRIOR_PROB < 1:
        raise ValueError(f"MODEL.YOLACT.PRIOR_PROB is {node.PRIOR_PROB}, not between 0 and 1")
    return {
        "num_anchors": num_anchors[0],
        "num_classes": node.NUM_CLASSES,
        "num_prototypes": node.PROTONET.NUM_PROTOTYPES,
        "has_background": has_background(cfg),
        "prior_prob": node.PRIOR_PROB,
    }


def _in_order(
    head: YOLACTHead | DecoupledHead,
    logits: list[Tensor],
    deltas: list[Tensor],
    coefficients: list[Tensor],
) -> DensePredictions:
    """The maps (N, anchors a cell x values, Hi, Wi) of all levels, in the order of the anchors."""

    def flat(levels: list[Tensor], num_values: int) -> Tensor:
        return torch.cat([permute_to_N_HWA_K(x, num_values) for x in levels], dim=1)

    return DensePredictions(
        logits=flat(logits, head.num_classes + head.has_background),
        deltas=flat(deltas, 4),
        coefficients=flat(coefficients, head.num_prototypes).tanh(),
    )
