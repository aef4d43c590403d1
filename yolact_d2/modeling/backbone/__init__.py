from .darknet import DarkNet, build_darknet53_backbone
from .fpn import (
    YOLACTFPN,
    build_fcos_fpn_backbone,
    build_yolact_darknet53_fpn_backbone,
    build_yolact_fpn_backbone,
    build_yolact_resnet_fpn_backbone,
    yolact_resnet,
)
from .timm_backbone import TimmBackbone, build_timm_backbone
