import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from ..modeling.backbone.batch_norm import batch_norms


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Give every process the batch norm statistics of rank 0, which checkpoints hold.

    To be called by all processes together, before an evaluation: each has statistics of its own
    images, and would find something else than the checkpoint does.
    """
    if comm.get_world_size() == 1:
        return
    for layer in batch_norms(model):
        for statistics in layer.buffers():
            dist.broadcast(statistics, src=0)
