from .yolact_plus_R_50_FPN_550 import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
model.backbone.bottom_up.resnet.stages.depth = 101
model.backbone.bottom_up.deform_interval = 3
