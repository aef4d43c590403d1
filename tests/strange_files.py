"""Checkpoints as a stranger may write them."""

import collections
import contextlib
import io
import os
import pickle
import resource
import struct
import zipfile

import torch


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Storage:
    """Pickled as torch pickles a storage of so many values."""

    def __init__(self, numel, kind=torch.FloatStorage, key="0", view=()):
        self.pid = ("storage", kind, key, "cpu", numel, *view)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


def pickled(obj):
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(obj)
    return buffer.getvalue()


def tensor(storage, size, stride, offset=0):
    """Pickled as torch pickles a tensor."""
    hooks = collections.OrderedDict()
    args = storage, offset, size, stride, False, hooks
    return Call(torch._utils._rebuild_tensor_v2, *args)


def write_zip(path, obj, data=struct.pack("4f", 1, 2, 3, 4), compression=zipfile.ZIP_STORED):
    """A file as torch writes it, of an object or its pickle; the storage "0" has 4 floats."""
    content = obj if isinstance(obj, bytes) else pickled(obj)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", data, compression)
    return path


def write_legacy(path, obj, keys=("0",), numel=4, data=struct.pack("4f", 1, 2, 3, 4)):
    """A file as torch wrote it before 1.6; storages have a sixth item."""
    with open(path, "wb") as file:
        for start in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}):
            pickle.dump(start, file, 2)
        file.write(pickled(obj))
        pickle.dump(list(keys), file, 2)
        for _ in keys:
            file.write(struct.pack("<q", numel) + data)
    return path


@contextlib.contextmanager
def little_memory(num_bytes=600_000_000):
    """So much more, and no more, may be taken while it lasts, wherever that can be limited."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
