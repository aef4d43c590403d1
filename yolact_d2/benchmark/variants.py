"""Ways to run a model, each measured as a row of its own."""

from collections.abc import Callable

import torch
from torch import nn

from ..optimization import optimize_for_inference


def _amp(model: nn.Module) -> nn.Module:
    device = model.device.type
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    forward = model.forward

    def forward_under_autocast(*args, **kwargs):
        # A context of its own each time: a model may call its own forward for parts of a batch.
        with torch.autocast(device, dtype):
            return forward(*args, **kwargs)

    model.forward = forward_under_autocast
    return model


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def _compile(model: nn.Module, mode: str = "default") -> nn.Module:
    """Compiles the networks; the code between them, full of Python, stays as it is."""
    for name in ("backbone", "head", "protonet", "proposal_generator.rpn_head"):
        try:
            network = model.get_submodule(name)
        except AttributeError:
            continue  # another architecture
        # Not network.compile(): that would compile hooks on it along.
        network.forward = torch.compile(network.forward, mode=mode)
    return model


def _cuda_graphs(model: nn.Module) -> nn.Module:
    return _compile(model, "reduce-overhead")


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "amp": _amp,
    "channels-last": _channels_last,
    "compile": _compile,
    "cuda-graphs": _cuda_graphs,
    "optimized": optimize_for_inference,
}
"""Each takes a model and returns one that is used in the same way; it may change the former."""


def apply_variant(name: str, model: nn.Module) -> nn.Module:
    """
    Args:
        name: of VARIANTS; several, joined by "+", are applied in turn.
    """
    for part in name.split("+"):
        model = VARIANTS[part](model)
    return model


def suits(name: str, architecture: str) -> bool:
    """Whether a variant exists for models of a meta-architecture."""
    return architecture == "YOLACT" or "optimized" not in name.split("+")


def check_variant(name: str) -> str:
    """
    Raises:
        ValueError: if there is none of that name, or its parts are in the wrong order.
    """
    for part in name.split("+"):
        if part not in VARIANTS:
            raise ValueError(f"unknown variant {part!r}; known are {', '.join(VARIANTS)}")
    if "optimized" in name.split("+")[1:]:
        # It copies the model, without what the others did to it.
        raise ValueError(f"variant {name!r}: 'optimized' must come first")
    return name
