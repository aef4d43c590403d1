"""A device other than the CPU, on any machine: PyTorch's "meta", whose tensors have no values, with
values on the CPU."""

import contextlib
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = "meta"
_aten = torch.ops.aten
_COPY = {_aten._to_copy.default, _aten.copy_.default}
_INDEX = {_aten.index.Tensor, _aten.index_put_.default, _aten._index_put_impl_.default}


class GPUTensor(Tensor):
    """Says that it is on the device, and holds `values`, a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    values: Tensor

    @staticmethod
    def __new__(cls, values):
        x = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            values.stride(),
            values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        x.values = values
        return x

    def tolist(self):
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    """Run an operation on the values. Like on a GPU, tensors of two devices are an error, but for
    scalars, copies, and indices on the CPU of a tensor on the device."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = any(isinstance(x, GPUTensor) for x in tensors)
    if func in _INDEX and isinstance(args[0], GPUTensor):
        checked = [args[0], *args[2:3]]
    else:
        checked = [] if func in _COPY else tensors
    if func != _aten.stack.default:
        checked = [x for x in checked if x.dim() > 0]
    if len({x.device for x in checked}) > 1:
        raise RuntimeError(f"{func}: tensors on the CPU and on the device")
    if kwargs.get("device") is not None:
        on_gpu = torch.device(kwargs["device"]).type == DEVICE
        kwargs = {**kwargs, "device": "cpu"}
    real_args, real_kwargs = tree_map_only(GPUTensor, lambda x: x.values, (args, kwargs))
    out = func(*real_args, **real_kwargs)
    if on_gpu:
        out = tree_map_only(Tensor, GPUTensor, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


@contextlib.contextmanager
def fake_gpu():
    """Within it, tensors can be made on and moved to `DEVICE`. Autocast has no effect."""
    without_autocast = mock.patch("torch.autocast", lambda *_, **__: contextlib.nullcontext())
    with _Mode(), without_autocast:
        yield
