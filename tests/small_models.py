"""Models for the benchmark's tests, in the words of its command line."""

from plain import CONFIGS

_SMALL = "MODEL.RESNETS.DEPTH=18,MODEL.RESNETS.RES2_OUT_CHANNELS=64,MODEL.FPN.OUT_CHANNELS=32"
_SIZE = "INPUT.MIN_SIZE_TEST=96,INPUT.MIN_SIZE_TRAIN=(96,)"

YOLACT = f"{CONFIGS / 'yolact_shapes.yaml'}:INPUT.IMAGE_SIZE=96"
MASK_RCNN = (
    f"mask_rcnn=COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml:{_SMALL},{_SIZE},"
    "MODEL.RPN.POST_NMS_TOPK_TEST=40"
)
CASCADE = (
    f"cascade=Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml:{_SMALL},{_SIZE},"
    "MODEL.RPN.POST_NMS_TOPK_TEST=40"
)
FASTER_RCNN = (
    f"faster_rcnn=COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml:{_SMALL},{_SIZE},"
    "MODEL.RPN.POST_NMS_TOPK_TEST=40"
)
RETINANET = f"retinanet=COCO-Detection/retinanet_R_50_FPN_1x.yaml:{_SMALL},{_SIZE}"
