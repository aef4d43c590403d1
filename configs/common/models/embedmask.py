"""EmbedMask R-50."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, ResNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from yolact_d2.modeling import EmbedMask, EmbedMaskCriterion, EmbedMaskHead

STRIDES = [8, 16, 32, 64, 128]

model = L(EmbedMask)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        top_block=L(LastLevelP6P7)(
            in_channels="${..out_channels}", out_channels="${..out_channels}", in_feature="p5"
        ),
    ),
    head=L(EmbedMaskHead)(
        input_shape=[ShapeSpec(channels=256, stride=stride) for stride in STRIDES],
        num_classes=80,
        conv_dims=[256] * 4,
        embed_dim=16,
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    # One location in the middle of each cell.
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[stride] for stride in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.5
    ),
    criterion=L(EmbedMaskCriterion)(
        strides="${..anchor_generator.strides}",
        loss_weights=dict(
            loss_cls=1.0, loss_box_reg=1.0, loss_centerness=1.0, loss_mask=0.5, loss_smooth=0.0
        ),
    ),
    pixel_mean=[102.9801, 115.9465, 122.7717],
    pixel_std=[1.0, 1.0, 1.0],
    input_format="BGR",
)
