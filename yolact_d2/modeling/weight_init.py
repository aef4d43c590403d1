import math
from collections.abc import Sequence

from torch import nn


def xavier_uniform_init(module: nn.Module) -> None:
    """Initialize all convolutions in `module` with Xavier-uniform weights and zero biases, as the
    authors do outside the backbone (fvcore's `c2_xavier_fill` is another distribution)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def prior_bias(probability: float) -> float:
    """The logit of a probability: a bias with which a class starts (arXiv 1708.02002, section
    4.1)."""
    return math.log(probability / (1 - probability))


def scale_residual_branches(last_norms: Sequence[nn.Module]) -> None:
    """Scale the residual branches of a network such that its output variance stays bounded.

    Without pretrained weights, a backbone with frozen batch norm (small batches) overflows
    otherwise.

    Args:
        last_norms: the norm at the end of each residual branch.
    """
    for norm in last_norms:
        weight = getattr(norm, "weight", None)
        if weight is not None:
            nn.init.constant_(weight, 1 / math.sqrt(len(last_norms)))
