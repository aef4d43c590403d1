import copy
import math
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import Tensor, nn
from torch.nn import functional as F

# The first dimensions of the embeddings, x and y.
NUM_SPATIAL = 2
# Coordinates enter the embeddings in units of this many pixels.
_POSITION_UNIT = 100
# Largest logarithm of a margin, so that margins and their gradients stay finite.
_MAX_LOG_MARGIN = 40


class EmbedMaskPredictions(NamedTuple):
    """Predictions for L locations of N images, level by level and row by row, all float32."""

    logits: Tensor
    """(N, L, C) class logits."""
    distances: Tensor
    """(N, L, 4) to the left, top, right and bottom of the box, at least 0, in strides."""
    centerness: Tensor
    """(N, L) logits."""
    embeddings: Tensor
    """(N, L, D) q of the proposals; the first two channels are x and y, in units of 100 pixels at
    the start of training."""
    margins: Tensor
    """(N, L, D) m of the proposals, above 0."""
    pixels: Tensor
    """(N, D, h, w) p, at twice the height and width of the finest level."""


class Scale(nn.Module):
    """A learnt factor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class EmbedMaskHead(FCOSHead):
    """FCOS's head, with embeddings and margins of proposals and embeddings of pixels
    (arXiv 1912.01954, figure 2; the layers are those of the authors' later code)."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        conv_dims: list[int],
        embed_dim: int,
        init_margin: float = 2.0,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            input_shape: of the feature maps, finest first.
            num_classes: C.
            conv_dims: channels of the convolutions of each tower.
            embed_dim: D, 3 or more.
            init_margin: distance between embeddings at which the probability is 1/2, at the start
                of training.
            prior_prob: class probability at the start of training.
        """
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            conv_dims=conv_dims,
            norm="GN",
            prior_prob=prior_prob,
        )
        levels = range(len(input_shape))
        self.scales = nn.ModuleList(Scale() for _ in levels)
        self.margin_scales = nn.ModuleList(Scale() for _ in levels)
        self.position_scale = Scale()
        self.mask_subnet = copy.deepcopy(self.bbox_subnet)

        def prediction(channels: int) -> nn.Conv2d:
            return nn.Conv2d(conv_dims[-1], channels, kernel_size=3, padding=1)

        self.proposal_spatial_embed_pred = prediction(NUM_SPATIAL)
        self.proposal_other_embed_pred = prediction(embed_dim - NUM_SPATIAL)
        self.proposal_margin_pred = prediction(embed_dim)
        self.pixel_spatial_embed_pred = prediction(NUM_SPATIAL)
        self.pixel_other_embed_pred = prediction(embed_dim - NUM_SPATIAL)
        for name, module in self.named_children():
            if name == "mask_subnet" or name.startswith(("proposal_", "pixel_")):
                for layer in module.modules():
                    if isinstance(layer, nn.Conv2d):
                        nn.init.normal_(layer.weight, std=0.01)
                        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        log_margin = math.log(math.log(2) / init_margin**2)
        nn.init.constant_(self.proposal_margin_pred.bias, log_margin)  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        node = cfg.MODEL.EMBEDMASK
        for key, is_right, right in (
            ("EMBED_DIM", node.EMBED_DIM >= NUM_SPATIAL + 1, f"{NUM_SPATIAL + 1} or more"),
            ("NUM_CONVS", node.NUM_CONVS >= 1, "1 or more"),
            ("INIT_MARGIN", node.INIT_MARGIN > 0, "above 0"),
            ("PRIOR_PROB", 0 < node.PRIOR_PROB < 1, "between 0 and 1"),
        ):
            if not is_right:
                raise ValueError(f"MODEL.EMBEDMASK.{key} is {node[key]}, not {right}")
        channels = input_shape[0].channels
        if channels % 32:
            raise ValueError(
                f"MODEL.FPN.OUT_CHANNELS is {channels}, not a multiple of 32: the head's group "
                "norm has 32 groups"
            )
        return {
            "input_shape": input_shape,
            "num_classes": node.NUM_CLASSES,
            "conv_dims": [channels] * node.NUM_CONVS,
            "embed_dim": node.EMBED_DIM,
            "init_margin": node.INIT_MARGIN,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor], locations: list[Tensor]) -> EmbedMaskPredictions:
        """
        Args:
            features: (N, in_channels, Hi, Wi) of each level, finest first.
            locations: (Hi x Wi, 2) of each level, x and y of the centres of the cells, in pixels
                of the network input.
        """
        levels: list[tuple[Tensor, ...]] = []
        for feature, points, scale, margin_scale in zip(
            features, locations, self.scales, self.margin_scales
        ):
            cls_feature, box_feature = self.cls_subnet(feature), self.bbox_subnet(feature)
            margin = self.proposal_margin_pred(box_feature / 32).float()
            spatial = margin_scale(margin[:, :NUM_SPATIAL])
            margin = torch.cat([spatial, margin[:, NUM_SPATIAL:]], dim=1)
            embedding = self._embedding(
                self.proposal_spatial_embed_pred(box_feature),
                self.proposal_other_embed_pred(box_feature),
                points,
            )
            levels.append(
                (
                    self.cls_score(cls_feature).float(),
                    scale(self.bbox_pred(box_feature).float()).relu(),
                    self.ctrness(box_feature).float(),
                    embedding,
                    margin.clamp(max=_MAX_LOG_MARGIN).exp(),
                )
            )
        mask_feature = self.mask_subnet(features[0])
        pixels = self._embedding(
            self.pixel_spatial_embed_pred(mask_feature),
            self.pixel_other_embed_pred(mask_feature),
            locations[0],
        )
        logits, distances, centerness, embeddings, margins = (
            torch.cat([permute_to_N_HWA_K(x, x.shape[1]) for x in level], dim=1)
            for level in zip(*levels)
        )
        return EmbedMaskPredictions(
            logits,
            distances,
            centerness.squeeze(2),
            embeddings,
            margins,
            F.interpolate(pixels, scale_factor=2, mode="bilinear"),
        )

    def _embedding(self, spatial: Tensor, other: Tensor, points: Tensor) -> Tensor:
        """(N, D, h, w), always float32: half precision is too coarse for coordinates above 10."""
        position = self.position_scale(points.t() / _POSITION_UNIT)
        spatial = spatial.float() + position.view(2, *spatial.shape[2:])
        return torch.cat([spatial, other.float()], dim=1)
