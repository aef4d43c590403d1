"""Without the averaged weights of the YAML config, which the lazy program does not have."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import CosineParamScheduler

from ..common.models.yolact_modern import model
from .yolact_R_50_FPN_550 import dataloader, lr_multiplier, optimizer, train

lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)
