"""For models that are traced, by ``torch.jit.trace`` or an exporter: sizes may be tensors then."""

from typing import Any

import torch
from torch import Tensor


def is_tracing() -> bool:
    """Whether Python's decisions and loops would become constants of a graph."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def is_eager_cpu(x: Tensor) -> bool:
    """Whether Python may look at the values of a tensor without waiting for a device. Also true in
    ``torch.compile``."""
    return x.device.type == "cpu" and not is_tracing()


def smaller(limit: int, size: Any) -> Any:
    """The minimum of a number and a size, which is a tensor under ``torch.jit.trace``."""
    return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)
