from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.optim import AdamW, Optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Detectron2's SGD, or AdamW with the same groups of parameters.

    Raises:
        ValueError: if SOLVER.OPTIMIZER is neither.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if solver.OPTIMIZER != "AdamW":
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}, not one of: SGD, AdamW")
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)
