from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """All batch norm layers in `module`."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Within this context, batch norms in `module` use their running statistics and do not update
    them."""
    training = [layer for layer in batch_norms(module) if layer.training]
    for layer in training:
        layer.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.train()
