"""YOLACT R-50 at 550 px."""

from detectron2.config import LazyCall as L
from detectron2.modeling import ResNet
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.box_regression import Box2BoxTransform

from yolact_d2.modeling import (
    YOLACT,
    YOLACTFPN,
    Protonet,
    YOLACTAnchorGenerator,
    YOLACTCriterion,
    YOLACTHead,
    get_nms,
    yolact_resnet,
)

model = L(YOLACT)(
    backbone=L(YOLACTFPN)(
        bottom_up=L(yolact_resnet)(
            resnet=L(ResNet)(
                stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
                stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="BN"),
                out_features=["res3", "res4", "res5"],
            ),
        ),
        in_features="${.bottom_up.resnet.out_features}",
        out_channels=256,
        # Batch norm is frozen if a GPU has fewer images.
        freeze_bn_below=6,
        images_per_device=8,
    ),
    head=L(YOLACTHead)(
        in_channels="${..backbone.out_channels}",
        conv_dim=256,
        num_anchors=3,
        num_classes="${..num_classes}",
        num_prototypes=32,
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    protonet=L(Protonet)(
        in_channels="${..backbone.out_channels}",
        conv_dim=256,
        num_convs=3,
        num_prototypes="${..head.num_prototypes}",
    ),
    anchor_generator=L(YOLACTAnchorGenerator)(
        sizes=[[24], [48], [96], [192], [384]],
        aspect_ratios=[[1.0, 0.5, 2.0]] * 5,
        image_size="${..image_size}",
        square=True,
    ),
    box2box_transform=L(Box2BoxTransform)(weights=(10.0, 10.0, 5.0, 5.0)),
    criterion=L(YOLACTCriterion)(
        box2box_transform="${..box2box_transform}",
        num_classes="${..num_classes}",
        loss_weights=dict(
            loss_cls=1.0, loss_box_reg=1.5, loss_mask=6.125, loss_sem_seg=1.0, loss_mask_iou=25.0
        ),
    ),
    num_classes=80,
    image_size=550,
    pixel_mean=[123.68, 116.78, 103.94],
    pixel_std=[58.40, 57.12, 57.38],
    nms=L(get_nms)(name="fast_nms"),
    input_format="RGB",
)
