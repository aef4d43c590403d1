"""The pickles of NumPy arrays in Detectron2's model zoo, read without NumPy's or other functions
that the file names."""

import math
from typing import Any, BinaryIO

import numpy as np

from .pickles import Refused, RestrictedUnpickler

_DTYPES = "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split()


def load_zoo_pickle(file: BinaryIO, size: int) -> dict[str, Any]:
    """
    Args:
        size: of the file, in bytes.

    Returns:
        what :meth:`DetectionCheckpointer._load_file` makes of such a file.

    Raises:
        ValueError, UnpicklingError: if it is damaged or holds something else.
    """
    data = _arrays(_ZooUnpickler(file, size).load())
    if "model" in data and "__author__" in data:
        return {**data, "model": _arrays(data["model"])}
    if "blobs" in data:  # a detector of Caffe2; backbones have none
        data = _arrays(data["blobs"])
    model = {key: value for key, value in data.items() if not str(key).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _arrays(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("it holds no dict of arrays")
    return {k: v.array if isinstance(v, _Array) else v for k, v in data.items()}


class _DType:
    def __init__(self, code: str, *_):
        if code not in _DTYPES:
            raise Refused(f"it has values of the type {code!r}; those known are {_DTYPES}")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array; there is none before its state is known."""

    array = None

    def __init__(self, unpickler: "_ZooUnpickler"):
        self._unpickler = unpickler

    def build(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = self._unpickler.make_array(data, dtype, shape, "F" if is_fortran else "C")


def _no_bytes(*args) -> bytes:
    """What protocol 2 has in place of b""."""
    if args:
        raise Refused("it asks for bytes of something")
    return b""


class _ZooUnpickler(RestrictedUnpickler):
    def __init__(self, file: BinaryIO, size: int):
        allowed = {
            "_codecs.encode": self._encode,
            "numpy.dtype": _DType,
            "numpy.ndarray": None,  # never called, only given to _reconstruct
        }
        for builtins in ("builtins", "__builtin__"):
            allowed[f"{builtins}.bytes"] = _no_bytes
        for core in ("numpy.core", "numpy._core"):  # before and since 2.0
            allowed[f"{core}.multiarray._reconstruct"] = self._empty_array
            allowed[f"{core}.multiarray.scalar"] = self._scalar
            allowed[f"{core}.numeric._frombuffer"] = self.make_array
        super().__init__(file, size, allowed)
        # Bytes once, and arrays of them once: a file that names some often has no others.
        self._bytes_left = 2 * size

    def make_array(self, data: Any, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
        data = self._as_bytes(data)
        num_bytes = math.prod(shape) * dtype.dtype.itemsize
        if num_bytes != len(data):
            raise ValueError(f"an array claims {num_bytes} bytes and has {len(data)}")
        self._spend(num_bytes)
        return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy(order="K")

    def _scalar(self, dtype: _DType, data: Any) -> np.generic:
        return self.make_array(data, dtype, (), "C")[()]

    def _empty_array(self, *_) -> _Array:
        return _Array(self)

    def _encode(self, text: str, encoding: str) -> bytes:
        """What makes bytes in protocol 2."""
        if encoding != "latin1":
            raise Refused(f"it encodes as {encoding!r}")
        return self._as_bytes(text)

    def _as_bytes(self, data: Any) -> bytes:
        """Of Python 2's strings too, which are read as text."""
        if isinstance(data, bytes):
            return data
        self._spend(len(data))
        return data.encode("latin1")

    def _spend(self, num_bytes: int) -> None:
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise ValueError("its arrays claim more bytes than the file has")
