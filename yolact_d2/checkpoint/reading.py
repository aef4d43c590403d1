"""Checkpoints of strangers: read without running code, and checked before memory is taken.

torch's own ``weights_only=True`` runs no code either, but takes whatever memory a file claims, and
looks at no checksum.
"""

import io
import math
import os
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from .names import StateDict
from .pickles import PlainDict, Refused, RestrictedUnpickler
from .zoo_pickle import load_zoo_pickle

# Bytes of a value.
_STORAGES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
_CHUNK = 1 << 20
_MAX_DIMENSIONS = 64


class CheckpointMismatch(ValueError):
    """A checkpoint that is not one of this model."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.pth`` file: what training saved, or a dict of tensors.

    Raises:
        CheckpointMismatch: naming the file, if it is damaged, holds more than tensors and plain
            values, or claims more than it has.
    """
    with open(path, "rb") as file:
        try:
            if os.path.getsize(path) == 0:
                raise ValueError("it is empty")
            is_zip = file.read(4) == b"PK\x03\x04"
            (_check_zip if is_zip else _check_legacy)(file, os.path.getsize(path))
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (MemoryError, OSError):  # say nothing about the file
            raise
        except Exception as error:  # whatever bytes that are no checkpoint lead a reader to
            if "can't allocate memory" in str(error):  # torch's, when all has been checked
                raise MemoryError(f"not enough memory for {path}") from error
            raise _mismatch(path, error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointMismatch(f"{path} is not a checkpoint: it holds no dict of tensors")
    return checkpoint


def read_zoo_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.pkl`` file of Detectron2's model zoo, of any age.

    Returns:
        "model": its arrays by name; the rest as :meth:`DetectionCheckpointer._load_file` has it.

    Raises:
        CheckpointMismatch: naming the file, if it is damaged or holds more than arrays and plain
            values.
    """
    with open(path, "rb") as file:
        try:
            checkpoint = load_zoo_pickle(file, os.path.getsize(path))
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise _mismatch(path, error) from error
    model_arrays(checkpoint, path)
    return checkpoint


def model_arrays(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """The tensors, or arrays, of a checkpoint of the file `path`.

    Raises:
        CheckpointMismatch: if it has others or none.
    """
    model = checkpoint.get("model", checkpoint)
    if not isinstance(model, dict) or not all(
        isinstance(k, str) and isinstance(v, (torch.Tensor, np.ndarray)) for k, v in model.items()
    ):
        raise CheckpointMismatch(f"{path} is not a checkpoint: it holds no dict of tensors")
    return model


def read_state_dict(path: str) -> StateDict:
    """Read the model's tensors from a ``.pth`` file.

    Raises:
        CheckpointMismatch: see :func:`read_checkpoint`.
    """
    tensors = model_arrays(read_checkpoint(path), path)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def refuse_pyth(path: str) -> None:
    """
    Raises:
        CheckpointMismatch: if it is a file of pycls, which is a pickle of anything.
    """
    if path.endswith(".pyth"):
        raise CheckpointMismatch(f"{path} is a file of pycls, which is not read; use a .pth file")


def _mismatch(path: str, error: Exception) -> CheckpointMismatch:
    if isinstance(error, Refused):
        return CheckpointMismatch(
            f"{path} is truncated or not a checkpoint, or it holds more than tensors and plain "
            f"values, which is not loaded from strangers: {error}"
        )
    # torch says what it does not like at the end of a line, and much behind it.
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    return CheckpointMismatch(f"{path} is truncated or not a checkpoint: {reason}")


def _check_zip(file: BinaryIO, size: int) -> None:
    """Check a file as torch has written it since 1.6.

    Raises:
        ValueError, BadZipFile, UnpicklingError: if it is damaged or claims more than it has.
    """
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if len(records) != len(archive.infolist()):
            raise ValueError("it has two records of one name")
        # Elsewhere other readers may see other records.
        if min(info.header_offset for info in records.values()) != 0:
            raise ValueError("it does not start with a record")
        for name, info in records.items():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"its record {name!r} is compressed, as none of a checkpoint is")
        claimed = sum(info.file_size for info in records.values())
        if claimed > size:
            raise ValueError(f"its records claim {claimed} bytes, the file has {size}")
        for info in records.values():
            # None is not looked at; torch writes 0 if it is told to compute none.
            info.CRC = info.CRC or None
            with archive.open(info) as record:
                while record.read(_CHUNK):
                    pass

        folder = next(iter(records)).split("/")[0]
        name = f"{folder}/data.pkl"
        if name not in records:
            raise ValueError(f"it has no record {name!r}")
        inspector = _Inspector(io.BytesIO(archive.read(name)), records[name].file_size)
        inspector.load()
    for key, num_bytes in inspector.storages.items():
        info = records.get(f"{folder}/data/{key}")
        if info is None or info.file_size != num_bytes:
            found = "is missing" if info is None else f"has {info.file_size}"
            raise ValueError(f"a tensor needs {num_bytes} bytes; record {key!r} {found}")


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Check a file as torch wrote it before 1.6: five pickles, and the values behind them.

    Raises:
        ValueError, UnpicklingError: if it is damaged or claims more than it has.
    """
    file.seek(0)
    if RestrictedUnpickler(file, size, {}).load() != torch.serialization.MAGIC_NUMBER:
        raise ValueError("it does not start as one")
    for _ in ("version", "machine"):
        RestrictedUnpickler(file, size, {}).load()
    inspector = _Inspector(file, size)
    inspector.load()
    keys = RestrictedUnpickler(file, size, {}).load()
    if not isinstance(keys, list) or sorted(keys) != sorted(inspector.storages):
        raise ValueError("the values of some tensors are missing")
    claimed = sum(8 + num_bytes for num_bytes in inspector.storages.values())
    if claimed > size - file.tell():
        raise ValueError(f"its tensors claim {claimed} bytes, {size - file.tell()} are there")


class _Storage(NamedTuple):
    numel: int


class _Tensor:
    """A tensor that is looked at and not made."""

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and state and isinstance(state[0], _Storage):
            _tensor(*state)


class _Inspector(RestrictedUnpickler):
    """Reads what torch pickled and makes nothing, but checks that each tensor lies in its storage.

    Attributes:
        storages: the bytes that each storage should have, by its key.
    """

    def __init__(self, file: BinaryIO, size: int):
        allowed = {
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch.nn.parameter.Parameter": _parameter,
            "torch.Size": _size,
            "collections.Counter": self._counter,  # of torch's schedulers
        }
        allowed.update((name, _StorageType(size)) for name, size in _STORAGES.items())
        super().__init__(file, size, allowed)
        self.storages: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        _, storage_type, key, _, numel, *view = pid
        if not isinstance(storage_type, _StorageType) or type(key) is not str:
            raise ValueError("a storage of no known type")
        _check_sizes(numel)
        num_bytes = numel * storage_type.element_size
        if self.storages.setdefault(key, num_bytes) != num_bytes:
            raise ValueError(f"storage {key!r} has two sizes")
        if view and view[0] is not None:  # a part of the storage
            _, offset, view_numel = view[0]
            _check_sizes(offset, view_numel)
            if offset + view_numel > numel:
                raise ValueError(f"storage {key!r} is smaller than a part of it")
            return _Storage(view_numel)
        return _Storage(numel)

    def _counter(self, counts: dict[Any, int]) -> PlainDict:
        self.dispatch.take(len(counts))  # which torch copies
        return PlainDict()


class _StorageType(NamedTuple):
    element_size: int


def _size(values: tuple) -> tuple:
    # A file may give the same many numbers to many tensors, each of which copies them.
    if len(values) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(values)} dimensions")
    return values


def _tensor(storage: _Storage, offset: int, size, stride, *_) -> _Tensor:
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise ValueError("a tensor without a storage, or with strides for other dimensions")
    _check_sizes(offset, *_size(size), *stride)
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    # Steps of 0 make few values look like many.
    if numel > 0 and (last >= storage.numel or numel > storage.numel):
        raise ValueError(
            f"a tensor claims the shape {tuple(size)} and strides {tuple(stride)} in a storage of "
            f"{storage.numel} values"
        )
    return _Tensor()


def _parameter(data: _Tensor | None = None, *_) -> _Tensor:
    return _Tensor()


def _check_sizes(*sizes: int) -> None:
    if not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError("a tensor or storage has a size that is no count")
