from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batch_norm(module: nn.Module) -> None:
    """Freeze the statistics and the affine parameters of every batch norm inside `module`.

    The layers stay what they are, so checkpoints of frozen and of trained models are the same.
    The next ``module.train()`` unfreezes the statistics, as it does for any PyTorch module.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
            layer.requires_grad_(False)
