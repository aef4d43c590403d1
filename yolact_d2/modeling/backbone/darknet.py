from collections.abc import Sequence

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..weight_init import scale_residual_branches


def _conv_norm_leaky(in_channels: int, out_channels: int, norm: str, **kwargs) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.LeakyReLU(0.1, inplace=True),
        **kwargs,
    )
    weight_init.c2_msra_fill(conv)
    return conv


class DarkNetBlock(nn.Module):
    """Residual block: a 1x1 convolution to half of the channels, a 3x3 convolution back."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.conv1 = _conv_norm_leaky(channels, channels // 2, norm, kernel_size=1)
        self.conv2 = _conv_norm_leaky(channels // 2, channels, norm, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class DarkNet(Backbone):
    """The convolutional part of DarkNet-53, the backbone of YOLOv3 (arXiv 1804.02767).

    A stem is followed by stages "dark1", "dark2", ..., each a 3x3 convolution of stride 2 and
    residual blocks. Stage i has stride 2**i.
    """

    def __init__(
        self,
        *,
        stage_widths: Sequence[int] = (64, 128, 256, 512, 1024),
        stage_blocks: Sequence[int] = (1, 2, 8, 8, 4),
        norm: str = "BN",
        out_features: Sequence[str] = ("dark3", "dark4", "dark5"),
        in_channels: int = 3,
    ):
        """
        Args:
            stage_widths: output channels of each stage.
            stage_blocks: number of residual blocks of each stage.
            norm: of all convolutions, a name or function for :func:`get_norm`.
            out_features: names of the stages to return.
            in_channels: of the images.
        """
        super().__init__()
        self.stage_names = [f"dark{i}" for i in range(1, len(stage_blocks) + 1)]
        self._out_features = list(out_features)
        if unknown := set(out_features) - set(self.stage_names):
            raise ValueError(
                f"MODEL.DARKNET.OUT_FEATURES: no stage {sorted(unknown)} in {self.stage_names}"
            )
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}

        channels = 32
        self.stem = _conv_norm_leaky(in_channels, channels, norm, kernel_size=3, padding=1)
        for i, (name, width, blocks) in enumerate(
            zip(self.stage_names, stage_widths, stage_blocks), start=1
        ):
            downsample = _conv_norm_leaky(channels, width, norm, kernel_size=3, stride=2, padding=1)
            residuals: list[nn.Module] = [DarkNetBlock(width, norm) for _ in range(blocks)]
            self.add_module(name, nn.Sequential(downsample, *residuals))
            channels = width
            self._out_feature_channels[name] = width
            self._out_feature_strides[name] = 2**i
        scale_residual_branches(
            [block.conv2.norm for block in self.modules() if isinstance(block, DarkNetBlock)]
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, in_channels, H, W) images in 0..1.

        Returns:
            the stages in `out_features`, each (N, width, ceil(H / stride), ceil(W / stride)).
        """
        outputs = {}
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_darknet53_backbone(cfg, input_shape: ShapeSpec) -> DarkNet:
    """DarkNet-53 without a feature pyramid (keys MODEL.DARKNET)."""
    return DarkNet(
        norm=cfg.MODEL.DARKNET.NORM,
        out_features=cfg.MODEL.DARKNET.OUT_FEATURES,
        in_channels=input_shape.channels,
    )
