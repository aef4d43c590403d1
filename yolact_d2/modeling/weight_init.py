import math
from collections.abc import Sequence

from torch import nn


def xavier_uniform_init(module: nn.Module) -> None:
    """Initialise every convolution of `module` as the authors do outside the backbone:
    Xavier-uniform weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def scale_residual_branches(last_norms: Sequence[nn.Module]) -> None:
    """Let the variance grow by a constant over a whole residual network, not over each block.

    Without it a backbone from scratch explodes if its batch norm is frozen, as it is for small
    batches. Pretrained weights replace what is set here.

    Args:
        last_norms: the norm at the end of each residual branch.
    """
    for norm in last_norms:
        weight = getattr(norm, "weight", None)
        if weight is not None:
            nn.init.constant_(weight, 1 / math.sqrt(len(last_norms)))
