"""Read checkpoint files without executing code from them."""

import pickle
import re
import zipfile
from typing import Any

import numpy as np
import torch

from .state_dict import StateDict

# What a pickle of NumPy arrays and plain values names, in all versions of NumPy.
_ARRAY_GLOBALS = {
    "_codecs.encode",
    "__builtin__.bytes",
    "builtins.bytes",
    "collections.OrderedDict",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
}


# Keys under which programs store the weights, in the order of preference: those of Detectron2,
# Lightning, PyTorch's tutorials and others.
_WEIGHTS = (
    *("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network"),
    *("params", "weights", "ema"),
)


_ARRAYS = (torch.Tensor, np.ndarray)


class CheckpointMismatch(ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return super().find_class(module, name)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.pth``, ``.safetensors`` or ``.pkl`` (Detectron2's model zoo) file.

    Returns:
        the content of the file: a state dict, or a dict that has one under "model", whatever key
        the file uses. Tensors of a ``.pth`` file stay on disk until they are used.

    Raises:
        CheckpointMismatch: naming the file, if it is damaged or holds anything but tensors and
            plain values.
    """
    try:
        checkpoint = _read(path)
    except (ImportError, MemoryError, OSError):  # not the file's fault
        raise
    except Exception as error:  # the readers raise many kinds for a damaged file
        # torch puts its advice, to load the file unsafely, around the reason.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip() or type(error).__name__
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {match[1]}"
        raise CheckpointMismatch(
            f"{path} is truncated or not a checkpoint, or it holds more than tensors and plain "
            f"values (code in a checkpoint is never executed): {reason.splitlines()[0]}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointMismatch(f"{path} is not a checkpoint: it holds no dict of tensors")
    key = next((key for key in _WEIGHTS if _has_tensors(checkpoint.get(key))), "model")
    if key != "model":
        checkpoint = {**checkpoint, "model": checkpoint[key]}
        del checkpoint[key]
    return checkpoint


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file  # an optional dependency

        return load_file(path)
    if path.endswith(".pkl"):
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    # Files from before torch 1.6, such as the authors', cannot be memory-mapped.
    is_zip = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if not is_zip and file.read(2) == b"PK":
            raise EOFError("the end of the archive is missing")  # torch may raise an OSError
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def model_tensors(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """The model's tensors or arrays, by name, in the checkpoint that was read from `path`.

    Raises:
        CheckpointMismatch: if there are none, or other values among them.
    """
    model = checkpoint.get("model", checkpoint)
    if not _is_state_dict(model):
        keys = ", ".join(map(str, list(checkpoint)[:10]))
        raise CheckpointMismatch(
            f"{path} is not a checkpoint: it holds no dict of tensors, itself or under one of "
            f"{', '.join(_WEIGHTS)}; it has {keys}"
        )
    return model


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(x, _ARRAYS) for x in value.values())


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(tensor, _ARRAYS) for key, tensor in value.items()
    )


def read_state_dict(path: str) -> StateDict:
    """The model's tensors in a checkpoint file, under the names that the file has."""
    tensors = model_tensors(read_checkpoint(path), path)
    return {key: torch.as_tensor(value) for key, value in tensors.items()}
