"""Ways to run a model."""

from functools import partial

import torch
from torch import nn

from yolact_d2 import optimize_for_inference
from yolact_d2.modeling import YOLACT, EmbedMask
from yolact_d2.optimization import compile_with_constants


def _amp(model: nn.Module) -> nn.Module:
    device = model.device.type
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    model.forward = torch.autocast(device, dtype)(model.forward)
    return model


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def _compile(model: nn.Module) -> nn.Module:
    # The networks only: what is between them has shapes that depend on the data.
    networks = dict(model.named_modules())
    for name in ("backbone", "head", "protonet", "proposal_generator.rpn_head"):
        if name in networks:
            compile_with_constants(networks[name])
    return model


# From a model to one that is called in the same way. Most change the model in place.
VARIANTS = {
    "float32": lambda model: model,
    "amp": _amp,
    "channels-last": _channels_last,
    "compile": _compile,
    "optimized": optimize_for_inference,
    "compiled": partial(optimize_for_inference, compile=True),
}


_COPIES = {"optimized", "compiled"}


def apply_variant(name: str, model: nn.Module) -> nn.Module:
    """
    Args:
        name: a key of VARIANTS, or several joined by "+".
    """
    # These first: they make a copy, without what others did to the model.
    for part in sorted(name.split("+"), key=lambda part: part not in _COPIES):
        model = VARIANTS[part](model)
    return model


def is_available(name: str, architecture: str) -> bool:
    """Whether models of a meta-architecture have a variant."""
    ours = architecture in (YOLACT.__name__, EmbedMask.__name__)
    return ours or not _COPIES.intersection(name.split("+"))
