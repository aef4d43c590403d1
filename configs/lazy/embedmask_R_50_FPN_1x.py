from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ..common.data.coco import embedmask as dataloader
from ..common.models.embedmask import model

train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"

optimizer = get_config("common/optim.py").SGD
optimizer.lr = 0.01
optimizer.params.base_lr = "${..lr}"
optimizer.params.weight_decay_norm = 0.0001
optimizer.params.bias_lr_factor = 2.0
optimizer.params.weight_decay_bias = 0.0

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[60000, 80000], num_updates="${train.max_iter}"
    ),
    warmup_factor=1 / 3,
    warmup_length=500 / 90000,
    warmup_method="constant",
)
