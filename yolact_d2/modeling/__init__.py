from .backbone import (
    YOLACTFPN,
    DarkNet,
    TimmBackbone,
    build_darknet53_backbone,
    build_fcos_fpn_backbone,
    build_timm_backbone,
    build_yolact_darknet53_fpn_backbone,
    build_yolact_fpn_backbone,
    build_yolact_resnet_fpn_backbone,
    yolact_resnet,
)
from .embedmask import EmbedMask, EmbedMaskCriterion, EmbedMaskHead, EmbedMaskPredictions
from .instance_detector import InstanceDetector
from .yolact import (
    NMS_REGISTRY,
    PROTONET_REGISTRY,
    YOLACT,
    YOLACT_CRITERION_REGISTRY,
    YOLACT_HEAD_REGISTRY,
    ComposedCriterion,
    DecoupledHead,
    DensePredictions,
    Detections,
    MaskIoUHead,
    Protonet,
    YOLACTAnchorGenerator,
    YOLACTCriterion,
    YOLACTHead,
    build_criterion,
    build_head,
    build_protonet,
    get_nms,
)
