from .anchors import YOLACTAnchorGenerator
from .head import DensePredictions, YOLACTHead
from .mask_iou_head import MaskIoUHead
from .nms import NMS_REGISTRY, Detections
from .protonet import PROTONET_REGISTRY, Protonet, build_protonet
from .yolact import YOLACT
