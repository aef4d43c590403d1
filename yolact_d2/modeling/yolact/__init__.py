from .anchors import YOLACTAnchorGenerator
from .criterion import YOLACTCriterion
from .head import DensePredictions, YOLACTHead
from .mask_iou_head import MaskIoUHead
from .nms import NMS_REGISTRY, Detections, get_nms
from .protonet import PROTONET_REGISTRY, Protonet, build_protonet
from .yolact import YOLACT
