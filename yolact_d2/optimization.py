"""Faster inference with a trained model."""

import copy
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .modeling import YOLACT, InstanceDetector
from .modeling.backbone.deform import ModulatedDeformConv2d
from .modeling.yolact.nms import fast_nms


def optimize_for_inference(
    model: InstanceDetector, *, dtype: torch.dtype | None = None, compile: bool = False
) -> InstanceDetector:
    """A faster copy of a model, whose detections are nearly the same.

    Batch norm is folded into the convolutions, and their weights are stored channels last, in half
    precision where the hardware computes in it. The copy is called like the model, and may replace
    ``Predictor.model``. It cannot be trained, and no weights can be loaded into it.

    Args:
        model: on the device that it will run on, with its weights loaded.
        dtype: of the networks: backbone, head and protonet. Default: :func:`fast_dtype`.
        compile: compile with ``torch.compile``, at the first image and again for other sizes of
            network inputs and batches; PyTorch runs the ninth and later ones as they are. On a CPU
            these are the networks, with the weights as constants, and it needs a C++ compiler. On
            a GPU it is all of YOLACT but the resize of the masks, as a CUDA graph: call the copy
            in one thread only.

    Raises:
        TypeError: if the model is not one of this project.
    """
    if not isinstance(model, InstanceDetector):
        raise TypeError(
            f"model must be a YOLACT or EmbedMask of yolact_d2, got {type(model).__name__}"
        )
    if dtype is None:
        dtype = fast_dtype(model.device)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for name in model.networks:
        part = getattr(model, name)
        fold_batch_norms(part)
        part.to(dtype).to(memory_format=torch.channels_last)
    if not compile:
        return model
    if isinstance(model, YOLACT) and model.nms is fast_nms and model.device.type != "cpu":
        # All whose shapes do not depend on what is found.
        model.detect_batch = torch.compile(  # type: ignore[method-assign]
            model.detect_batch, mode="reduce-overhead", dynamic=False
        )
    else:
        for name in model.networks:
            compile_with_constants(getattr(model, name))
    return model


def compile_with_constants(module: nn.Module, **options: Any) -> None:
    """Compile a module at its first call, for the weights that it has then.

    Args:
        module: called without gradients only.
        options: of ``torch.compile``.
    """
    from torch._inductor import config as inductor_config  # which takes long to import

    module.compile(**options)
    compiled: Any = module._compiled_call_impl

    def call(*args: Any) -> Any:
        # The compiler reads this setting from many places, of which `options` reaches only some.
        with inductor_config.patch(freezing=True):
            return compiled(*args)

    module._compiled_call_impl = call


def fast_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which a device computes convolutions fastest: float16 on a GPU, bfloat16 on a
    CPU with instructions for it, else float32."""
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in PyTorch 2.6
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return torch.bfloat16
    return torch.float32


def fold_batch_norms(module: nn.Module) -> None:
    """Fold the batch norm of each convolution in `module` into its weights, in place."""
    for conv in module.modules():
        if not isinstance(conv, (nn.Conv2d, ModulatedDeformConv2d)):
            continue
        norm = getattr(conv, "norm", None)
        if isinstance(norm, (_BatchNorm, FrozenBatchNorm2d)):
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,  # type: ignore[arg-type]
                norm.running_var,  # type: ignore[arg-type]
                norm.eps,
                norm.weight,
                norm.bias,
            )
            conv.norm = None
