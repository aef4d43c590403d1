from detectron2.config import LazyCall as L

from yolact_d2.evaluation import MaskScoreCOCOEvaluator

from ..common.models.yolact_plus import model
from .yolact_R_50_FPN_550 import dataloader, lr_multiplier, optimizer, train

dataloader.evaluator = L(MaskScoreCOCOEvaluator)(dataset_name="${..test.dataset.names}")
