from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Every batch norm inside `module`."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Let every batch norm inside `module` use its running statistics, and keep them."""
    training = [layer for layer in batch_norms(module) if layer.training]
    for layer in training:
        layer.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.train()
