from .anchors import DistanceTransform, YOLACTAnchorGenerator
from .assigners import assign_atss, assign_by_iou, assign_task_aligned
from .composed_criterion import ComposedCriterion
from .criterion import YOLACT_CRITERION_REGISTRY, YOLACTCriterion, build_criterion
from .head import (
    YOLACT_HEAD_REGISTRY,
    DecoupledHead,
    DensePredictions,
    YOLACTHead,
    build_head,
)
from .mask_iou_head import MaskIoUHead
from .nms import NMS_REGISTRY, Detections, get_nms
from .protonet import PROTONET_REGISTRY, Protonet, build_protonet
from .yolact import YOLACT
