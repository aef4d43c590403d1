from .anchors import YOLACTAnchorGenerator
from .backbone import (
    YOLACTFPN,
    DarkNet,
    build_darknet53_backbone,
    build_yolact_darknet53_fpn_backbone,
    build_yolact_resnet_fpn_backbone,
)
from .head import DensePredictions, YOLACTHead
from .mask_iou_head import MaskIoUHead
from .nms import NMS_REGISTRY, Detections
from .protonet import PROTONET_REGISTRY, Protonet, build_protonet
from .yolact import YOLACT
