from .embedmask_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.max_iter = 270000
model.backbone.bottom_up.stages.depth = 101
# One of the two for each image.
dataloader.train.mapper.augmentations[0].short_edge_length = (640, 800)
lr_multiplier.scheduler.milestones = [210000, 250000]
lr_multiplier.warmup_length = 500 / 270000
