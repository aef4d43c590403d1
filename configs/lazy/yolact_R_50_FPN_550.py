from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ..common.data.coco import yolact as dataloader
from ..common.models.yolact import model

train = get_config("common/train.py").train
train.init_checkpoint = "https://download.pytorch.org/models/resnet50-0676ba61.pth"
train.max_iter = 800000
train.eval_period = 20000
train.checkpointer.period = 10000

optimizer = get_config("common/optim.py").SGD
optimizer.lr = 0.001
optimizer.weight_decay = 0.0005
optimizer.params.weight_decay_norm = 0.0005

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01, 0.001, 0.0001],
        milestones=[280000, 600000, 700000, 750000],
        num_updates="${train.max_iter}",
    ),
    warmup_factor=0.1,
    warmup_length=500 / 800000,
    warmup_method="linear",
)
