"""YOLACT++ R-50 at 550 px: deformable convolutions, more anchors and mask re-scoring."""

from detectron2.config import LazyCall as L

from yolact_d2.modeling import MaskIoUHead

from .yolact import model

model.backbone.bottom_up.deform_on_per_stage = [False, True, True, True]
model.anchor_generator.sizes = [
    [size * 2 ** (i / 3) for i in range(3)] for size in (24, 48, 96, 192, 384)
]
model.anchor_generator.square = False
model.head.num_anchors = 9
model.mask_iou_head = L(MaskIoUHead)(
    conv_dims=[8, 16, 32, 64, 128],
    num_classes="${..num_classes}",
    mask_size=138,  # of the prototypes of a 550 px image
)
