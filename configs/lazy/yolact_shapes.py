"""The generated shapes dataset, from scratch in minutes, on a CPU too."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from .yolact_R_50_FPN_550 import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = ""
train.output_dir = "./output/lazy_shapes"
train.max_iter = 2300
train.eval_period = 0
train.checkpointer.period = 1000

model.num_classes = 4
model.image_size = 160
model.backbone.bottom_up.resnet.stages.depth = 18
del model.backbone.bottom_up.resnet.stages.stride_in_1x1  # basic blocks have no 1x1 convolutions
model.backbone.out_channels = 64
model.head.conv_dim = 128
model.head.num_anchors = 6
model.head.num_prototypes = 16
model.protonet.conv_dim = 64
model.anchor_generator.sizes = [[14, 20], [28, 40], [56, 80], [80, 112], [112, 140]]
model.anchor_generator.square = False

dataloader.train.dataset.names = "shapes_train"
dataloader.test.dataset.names = "shapes_val"
dataloader.train.num_workers = dataloader.test.num_workers = 1
dataloader.train.mapper.augmentations.update(expand_max_ratio=None, crop_min_ratio=0.7)

optimizer.lr = 0.01
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)
lr_multiplier.warmup_length = 100 / 2300
