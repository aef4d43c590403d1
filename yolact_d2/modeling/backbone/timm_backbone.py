import difflib
import math
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor
from torch.nn import functional as F


class TimmBackbone(Backbone):
    """A model of timm. Its feature maps are named as those of Detectron2's ResNet: "res2" has
    stride 4, "res3" stride 8 and so on."""

    def __init__(self, name: str, *, in_channels: int = 3, pretrained: bool = False, **kwargs: Any):
        """
        Args:
            name: of a model of timm that supports `features_only`.
            in_channels: channels of the images.
            pretrained: load timm's weights.
            kwargs: see `timm.create_model`.

        Raises:
            ValueError: if timm is not installed or has no such model.
        """
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError("models of timm need: pip install 'yolact_d2[timm]'") from error
        if not timm.is_model(name.split(".")[0]):
            similar = difflib.get_close_matches(name, timm.list_models(), n=5)
            raise ValueError(
                f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have; "
                f"similar names: {', '.join(similar) or 'none'}"
            )
        net: Any = timm.create_model(
            name, pretrained=pretrained, features_only=True, in_chans=in_channels, **kwargs
        )
        self.net = net
        strides = net.feature_info.reduction()
        self._out_features = [f"res{round(math.log2(stride))}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides))
        self._out_feature_channels = dict(zip(self._out_features, net.feature_info.channels()))
        self._is_channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, in_channels, H, W).

        Returns:
            (N, C, ceil(H / stride), ceil(W / stride)) by name. Many models round down: images are
            padded at the right and bottom with zeros, to a multiple of the largest stride, and the
            maps are cropped.
        """
        height, width = x.shape[-2:]
        multiple = max(self._out_feature_strides.values())
        features = self.net(F.pad(x, (0, -width % multiple, 0, -height % multiple)))
        if self._is_channels_last:  # transformers
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        outputs = {}
        for name, feature in zip(self._out_features, features):
            stride = self._out_feature_strides[name]
            outputs[name] = feature[..., : -(-height // stride), : -(-width // stride)]
        return outputs


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """A model of timm without a feature pyramid (keys MODEL.TIMM)."""
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but stages of timm's "
            "models are not frozen: set it to 0"
        )
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for deformable convolutions, which models of "
            "timm do not have"
        )
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        in_channels=input_shape.channels,
        # MODEL.WEIGHTS would replace them.
        pretrained=cfg.MODEL.TIMM.PRETRAINED and not cfg.MODEL.WEIGHTS,
        **cfg.MODEL.TIMM.ARGS,
    )
