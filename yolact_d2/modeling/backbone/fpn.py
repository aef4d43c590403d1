from collections.abc import Sequence
from contextlib import nullcontext

from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import get_registered
from ..weight_init import scale_residual_branches, xavier_uniform_init
from .batch_norm import batch_norms, fixed_statistics
from .darknet import build_darknet53_backbone
from .deform import use_deformable_convs


class LastLevelDownsample(nn.Module):
    """P6 and P7: two 3x3 convolutions of stride 2 on P5, without activations."""

    in_feature = "p5"
    num_levels = 2

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        self.p7 = Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]


class YOLACTFPN(FPN):
    """YOLACT's feature pyramid.

    Differs from Detectron2's :class:`FPN` in two points: the top-down path resizes bilinearly to
    the exact size of the finer level (so image sizes need not be divisible by anything), and P3 to
    P5 end in a ReLU.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        *,
        norm: str = "",
        freeze_bn_below: int = 6,
        images_per_device: int = 8,
    ):
        """
        Args:
            bottom_up: the network that returns C3, C4 and C5.
            in_features: their names, finest first.
            out_channels: channels of every level.
            norm: of the lateral and output convolutions; the paper has none.
            freeze_bn_below: training steps with fewer images than this on a device use and keep
                the running statistics of the batch norms of `bottom_up`.
            images_per_device: images per training step and device. If below `freeze_bn_below`, the
                affine parameters of the batch norms are frozen too; at construction, because
                optimizers and DDP read `requires_grad` at their start.
        """
        super().__init__(
            bottom_up,
            in_features,
            out_channels,
            norm=norm,
            top_block=LastLevelDownsample(out_channels),
        )
        self.freeze_bn_below = freeze_bn_below
        if images_per_device < freeze_bn_below:
            for layer in batch_norms(bottom_up):
                layer.requires_grad_(False)
        for layers in (*self.lateral_convs, *self.output_convs, self.top_block):
            xavier_uniform_init(layers)

    @property
    def size_divisibility(self) -> int:
        return 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W) normalized images.

        Returns:
            "p3" to "p7": (N, out_channels, Hi, Wi), where H3 = ceil(H / 8), H4 = ceil(H3 / 2), ...
        """
        frozen = self.training and len(x) < self.freeze_bn_below
        with fixed_statistics(self.bottom_up) if frozen else nullcontext():
            bottom_up_features = self.bottom_up(x)

        results: list[Tensor] = []
        top_down = None
        for name, lateral_conv, output_conv in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs
        ):
            merged = lateral_conv(bottom_up_features[name])
            if top_down is not None:
                size = merged.shape[-2:]
                merged = merged + F.interpolate(top_down, size=size, mode="bilinear")
            results.insert(0, F.relu_(output_conv(merged)))
            top_down = merged
        results.extend(self.top_block(results[-1]))
        return dict(zip(self._out_features, results))


def build_fpn(cfg, bottom_up: Backbone) -> YOLACTFPN:
    shapes = bottom_up.output_shape()
    unknown = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in shapes]
    if unknown:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES: no stage {unknown}; {type(bottom_up).__name__} gives "
            f"{sorted(shapes)}"
        )
    return YOLACTFPN(
        bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        freeze_bn_below=cfg.MODEL.BACKBONE.FREEZE_BN_BELOW,
        images_per_device=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
    )


@BACKBONE_REGISTRY.register()
def build_yolact_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> YOLACTFPN:
    """Detectron2's ResNet (keys MODEL.RESNETS) with YOLACT's pyramid (keys MODEL.FPN)."""
    if cfg.MODEL.FPN.BOTTOM_UP != "build_resnet_backbone":
        raise ValueError(
            f"MODEL.FPN.BOTTOM_UP is {cfg.MODEL.FPN.BOTTOM_UP!r}: set MODEL.BACKBONE.NAME to "
            "'build_yolact_fpn_backbone', which uses it"
        )
    resnets = cfg.MODEL.RESNETS
    if any(resnets.DEFORM_ON_PER_STAGE) and not resnets.DEFORM_MODULATED:
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: YOLACT++'s deformable convolutions are modulated, "
            "set MODEL.RESNETS.DEFORM_MODULATED to True"
        )
    plain_cfg = cfg.clone()
    plain_cfg.defrost()
    plain_cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    resnet = yolact_resnet(
        build_resnet_backbone(plain_cfg, input_shape),
        resnets.DEFORM_ON_PER_STAGE,
        resnets.DEFORM_INTERVAL,
        resnets.DEFORM_NUM_GROUPS,
        cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return build_fpn(cfg, resnet)


def yolact_resnet(
    resnet: ResNet,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_interval: int = 1,
    deform_groups: int = 1,
    freeze_at: int = 0,
) -> ResNet:
    """Initialize a ResNet as the authors do, and make some of its convolutions deformable, in
    place.

    Args:
        deform_on_per_stage, deform_interval, deform_groups: see :func:`use_deformable_convs`.
        freeze_at: see :meth:`ResNet.freeze`.
    """
    blocks = [block for stage in resnet.stages for block in stage]
    last_convs = [getattr(block, "conv3", block.conv2) for block in blocks]
    scale_residual_branches([conv.norm for conv in last_convs])
    use_deformable_convs(resnet, deform_on_per_stage, deform_interval, deform_groups)
    return resnet.freeze(freeze_at)


@BACKBONE_REGISTRY.register()
def build_yolact_darknet53_fpn_backbone(cfg, input_shape: ShapeSpec) -> YOLACTFPN:
    """DarkNet-53 (keys MODEL.DARKNET) with YOLACT's pyramid (keys MODEL.FPN)."""
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for deformable convolutions, which DarkNet-53 "
            "does not have"
        )
    return build_fpn(cfg, build_darknet53_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_yolact_fpn_backbone(cfg, input_shape: ShapeSpec) -> YOLACTFPN:
    """The backbone that MODEL.FPN.BOTTOM_UP names with YOLACT's pyramid (keys MODEL.FPN)."""
    return build_fpn(cfg, build_bottom_up(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fcos_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The backbone that MODEL.FPN.BOTTOM_UP names with Detectron2's FPN (keys MODEL.FPN), and P6
    and P7 from P5; those of Detectron2's RetinaNet are from C5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_bottom_up(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_bottom_up(cfg, input_shape: ShapeSpec) -> Backbone:
    name = cfg.MODEL.FPN.BOTTOM_UP
    return get_registered(BACKBONE_REGISTRY, name, "MODEL.FPN.BOTTOM_UP")(cfg, input_shape)
