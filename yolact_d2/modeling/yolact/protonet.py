from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import get_registered
from ..weight_init import xavier_uniform_init

PROTONET_REGISTRY = Registry("PROTONET")
PROTONET_REGISTRY.__doc__ = """
Networks that predict prototype masks from the finest feature map.

The registered object is called with `obj(cfg, input_shape: ShapeSpec)` and returns a module that
maps (N, input_shape.channels, H, W) to (N, k, h, w).
"""


def build_protonet(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build the network that ``cfg.MODEL.YOLACT.PROTONET.NAME`` names."""
    key = "MODEL.YOLACT.PROTONET.NAME"
    return get_registered(PROTONET_REGISTRY, cfg.MODEL.YOLACT.PROTONET.NAME, key)(cfg, input_shape)


@PROTONET_REGISTRY.register()
class Protonet(nn.Module):
    """YOLACT's protonet: convolutions, a 2x upsampling, two convolutions (arXiv 1904.02689,
    figure 3)."""

    @configurable
    def __init__(self, *, in_channels: int, conv_dim: int, num_convs: int, num_prototypes: int):
        """
        Args:
            in_channels: channels of the feature map.
            conv_dim: output channels of the 3x3 convolutions.
            num_convs: number of convolutions before the upsampling.
            num_prototypes: k.
        """
        super().__init__()
        convs = []
        for _ in range(num_convs):
            convs.append(
                Conv2d(in_channels, conv_dim, kernel_size=3, padding=1, activation=F.relu_)
            )
            in_channels = conv_dim
        self.convs = nn.Sequential(*convs)
        self.upsampled_conv = Conv2d(
            in_channels, conv_dim, kernel_size=3, padding=1, activation=F.relu_
        )
        self.prototypes = Conv2d(conv_dim, num_prototypes, kernel_size=1, activation=F.relu_)
        xavier_uniform_init(self)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        return {
            "in_channels": input_shape.channels,
            "conv_dim": cfg.MODEL.YOLACT.PROTONET.CONV_DIM,
            "num_convs": cfg.MODEL.YOLACT.PROTONET.NUM_CONVS,
            "num_prototypes": cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES,
        }

    def forward(self, feature: Tensor) -> Tensor:
        """
        Args:
            feature: (N, in_channels, H, W), the finest level of the pyramid.

        Returns:
            (N, k, 2 H, 2 W) prototypes, at least 0.
        """
        x = self.convs(feature)
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        return self.prototypes(self.upsampled_conv(x))
