from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn
from torch.nn import functional as F

from ..weight_init import xavier_uniform_init


class DensePredictions(NamedTuple):
    """Predictions of the head for all A anchors of N images, in the order of the anchors."""

    logits: Tensor
    """(N, A, C + 1) class logits, background last."""
    deltas: Tensor
    """(N, A, 4) box regression, in the coding of :class:`Box2BoxTransform`."""
    coefficients: Tensor
    """(N, A, k) mask coefficients, in -1..1."""


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
    ):
        """
        Args:
            in_channels: channels of the feature maps.
            conv_dim: output channels of the convolution that the three branches share.
            num_anchors: number of anchors at each feature map location.
            num_classes: C, number of foreground classes.
            num_prototypes: k.
        """
        super().__init__()
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes
        self.conv = Conv2d(in_channels, conv_dim, kernel_size=3, padding=1, activation=F.relu)
        self.cls_score = Conv2d(conv_dim, num_anchors * (num_classes + 1), kernel_size=3, padding=1)
        self.bbox_pred = Conv2d(conv_dim, num_anchors * 4, kernel_size=3, padding=1)
        self.mask_coefficients = Conv2d(
            conv_dim, num_anchors * num_prototypes, kernel_size=3, padding=1
        )
        xavier_uniform_init(self)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors
        if len(set(num_anchors)) != 1:
            raise ValueError(
                "all levels share one head, so each needs the same number of anchors in "
                f"MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS, got {num_anchors}"
            )
        return {
            "in_channels": input_shape[0].channels,
            "conv_dim": cfg.MODEL.YOLACT.HEAD_CONV_DIM,
            "num_anchors": num_anchors[0],
            "num_classes": cfg.MODEL.YOLACT.NUM_CLASSES,
            "num_prototypes": cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES,
        }

    def forward(self, features: list[Tensor]) -> DensePredictions:
        """
        Args:
            features: feature maps (N, in_channels, Hi, Wi), finest first.
        """
        logits, deltas, coefficients = [], [], []
        for feature in features:
            x = self.conv(feature)
            logits.append(permute_to_N_HWA_K(self.cls_score(x), self.num_classes + 1))
            deltas.append(permute_to_N_HWA_K(self.bbox_pred(x), 4))
            coefficients.append(permute_to_N_HWA_K(self.mask_coefficients(x), self.num_prototypes))
        return DensePredictions(
            logits=torch.cat(logits, dim=1),
            deltas=torch.cat(deltas, dim=1),
            coefficients=torch.cat(coefficients, dim=1).tanh(),
        )
