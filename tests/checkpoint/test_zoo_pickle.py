"""The pickles of Detectron2's model zoo, and others that pretend to be such."""

import codecs
import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from strange_files import Call, little_memory

from yolact_d2.checkpoint import CheckpointMismatch
from yolact_d2.checkpoint.reading import read_zoo_checkpoint

RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float32(1).__reduce__()[0]
ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">i2"),
    "bytes above 127": np.full(5, 200, dtype=np.uint8),
    "halves": np.array([0.5], dtype=np.float16),
    "truths": np.array([True, False]),
    "none": np.zeros((0, 4), dtype=np.float32),
    "no dimensions": np.array(7, dtype=np.int64),
}


def write(path, content, protocol=2):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def read(path):
    with little_memory():
        return read_zoo_checkpoint(str(path))


def refused(path):
    with pytest.raises(CheckpointMismatch) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value)


def assert_same(got, expected):
    assert list(got) == list(expected)
    for key, value in expected.items():
        assert got[key].dtype == value.dtype and got[key].shape == value.shape
        assert np.array_equal(got[key], value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_arrays_of_every_protocol(tmp_path, protocol, kind):
    content = {"model": kind(ARRAYS), "__author__": "someone", "matching_heuristics": True}
    got = read(write(tmp_path / "some.pkl", content, protocol))
    assert_same(got.pop("model"), ARRAYS)
    assert got == {"__author__": "someone", "matching_heuristics": True}


@pytest.mark.parametrize("blobs", [False, True])
def test_files_of_caffe2(tmp_path, blobs):
    arrays = {**ARRAYS, "floats_momentum": np.ones(2)}
    path = write(tmp_path / "some.pkl", {"blobs": arrays} if blobs else arrays)
    got = read(path)
    assert_same(got.pop("model"), ARRAYS)
    assert got == {"__author__": "Caffe2", "matching_heuristics": True}


def test_what_is_read_can_be_changed(tmp_path):
    array = read(write(tmp_path / "some.pkl", ARRAYS))["model"]["floats"]
    assert array.flags.writeable and array.flags.owndata


def test_python_2s_strings(tmp_path):
    """By hand, as nothing here writes them: {'w': array([200, 1], uint8)}."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01(K\x02t" + dtype + b"\x89" + text(bytes([200, 1])) + b"tb"
    content = b"\x80\x02}(" + text(b"w") + array + b"u."
    expected = {"w": np.array([200, 1], np.uint8)}
    assert_same(pickle.loads(content, encoding="latin1"), expected)
    assert_same(read(write(tmp_path / "some.pkl", content))["model"], expected)


def test_numbers_beside_the_arrays(tmp_path):
    content = {"model": ARRAYS, "__author__": "x", "lr": np.float32(0.5), "step": np.int64(7)}
    got = read(write(tmp_path / "some.pkl", content))
    assert got["lr"] == 0.5 and got["step"] == 7 and got["step"].dtype == np.int64


CALLS = {
    "posix.mkdir": lambda mark: Call(os.mkdir, mark),
    "posix.system": lambda mark: Call(os.system, f"mkdir {mark}"),
    "eval": lambda mark: Call(eval, f"__import__('os').mkdir({mark!r})"),
    "load": lambda mark: Call(np.load, mark, None, True),
    "fromfile": lambda mark: Call(np.fromfile, mark),
    "torch.storage._load_from_bytes": lambda mark: torch.zeros(2).storage(),
    "bytearray": lambda mark: Call(bytearray, 10**10),
    "bytes": lambda mark: Call(bytes, 10**10),
    "object of type": lambda mark: np.array([Call(os.mkdir, mark)], dtype=object),
}


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("depth", [0, 3])
def test_what_is_called_is_refused_by_name(tmp_path, name, protocol, depth):
    mark = tmp_path / "mark"
    content = CALLS[name](str(mark))
    for _ in range(depth):
        content = {"inside": [1, (content, 2)]}
    path = write(tmp_path / "some.pkl", {"model": {"w": content}}, protocol)
    message = refused(path)
    assert "not loaded from strangers" in message
    assert name in message or (name == "object of type" and "'O8'" in message)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nmkdir\n(V%s\ntR.",
        b"(S'%s'\nios\nmkdir\n.",
        b"(cos\nmkdir\nS'%s'\no.",
        b"\x80\x02cos\nmkdir\nX\x04\x00\x00\x00%s\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x04%s\x85R.",
    ],
)
def test_every_way_to_call(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "some.pkl", content.replace(b"%s", b"mark"))
    assert "not loaded from strangers" in refused(path)
    assert not (tmp_path / "mark").exists()


def state(shape, dtype="f4", data=bytes(8)):
    return 1, shape, np.dtype(dtype), False, data


class Array:
    """Pickled as an array of any claims."""

    def __init__(self, state, shape=(0,), kind=np.ndarray):
        self.args, self.state = (kind, shape, b"b"), state

    def __reduce__(self):
        return RECONSTRUCT, self.args, self.state


class Lists(list):
    pass


@pytest.mark.parametrize(
    "array, message",
    [
        (Array(state((10**12,))), "claims 4000000000000 bytes and has 8"),
        (Array(state((3,))), "claims 12 bytes and has 8"),
        (Array(state((1,))), "claims 4 bytes and has 8"),
        (Array(state((-2, -1))), ""),
        (Array(state((2,), "V4")), "'V4'"),
        (Array(state((2,), [("a", "f4")])), "'V4'"),
        (Array(state((1,), "O", [1])), "'O8'"),
        (Array(state((1,), "U2", bytes(8))), "'U2'"),
        (Array(state((2,)), kind=Lists), "Lists"),
        (Array(state((2,), data=[1, 2])), ""),
        (Call(np.dtype, "10000000000f4"), "'10000000000f4'"),
        (Call(SCALAR, np.dtype("f4"), bytes(400)), "claims 4 bytes and has 400"),
        (Call(SCALAR, np.dtype("V2000000000")), "'V2000000000'"),
    ],
)
def test_sizes_and_kinds_that_lie(tmp_path, array, message):
    assert message in refused(write(tmp_path / "some.pkl", {"w": array}))


def test_array_of_no_state_is_no_array(tmp_path):
    """_reconstruct alone would make it as large as it says."""
    array = Call(RECONSTRUCT, np.ndarray, (10**12,), b"b")
    assert "no dict of tensors" in refused(write(tmp_path / "some.pkl", {"w": array}))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x8e" + struct.pack("<Q", 10**12),  # BINBYTES8
        b"\x80\x05\x96" + struct.pack("<Q", 10**12),  # BYTEARRAY8
        b"\x80\x04\x95" + struct.pack("<Q", 10**12),  # FRAME
        b"\x80\x04\x8d" + struct.pack("<Q", 10**12),  # BINUNICODE8
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1),  # BINSTRING
        b"\x80\x02}r\xff\xff\xff\xff.",  # LONG_BINPUT, for which Python in C makes room
    ],
)
def test_lengths_that_lie(tmp_path, content):
    path = write(tmp_path / "some.pkl", content)
    if content.endswith(b"."):
        assert read(path)["model"] == {}
    else:
        assert "MemoryError" not in refused(path)


def test_few_bytes_that_are_used_often(tmp_path):
    data = bytes(1_000_000)
    arrays = {str(i): Array(state((250_000,), data=data)) for i in range(100)}
    path = write(tmp_path / "some.pkl", arrays, 3)
    assert path.stat().st_size < 1_100_000
    assert "claim more bytes than the file has" in refused(path)


def test_text_that_is_encoded_often(tmp_path):
    """In protocol 2 bytes are a call of a function, with text that other calls may share."""
    array = pickle.dumps({"w": Array(state((10**5,), "u1", bytes(10**5)))}, 2)
    read(write(tmp_path / "some.pkl", array))
    text = "x" * 10**5
    content = {"model": [Call(codecs.encode, text, "latin1") for _ in range(100)]}
    path = write(tmp_path / "some.pkl", content)
    assert path.stat().st_size < 110_000
    assert "claim more bytes than the file has" in refused(path)


def test_other_encodings_are_refused(tmp_path):
    content = {"w": Call(codecs.encode, "text", "utf-16")}
    assert "it encodes as 'utf-16'" in refused(write(tmp_path / "some.pkl", content))


def test_pairs_that_are_used_often(tmp_path, monkeypatch):
    monkeypatch.setattr("yolact_d2.checkpoint.pickles._MAX_STEPS", 20_000)
    pairs = [[str(i), i] for i in range(100)]
    content = {"model": [Call(collections.OrderedDict, pairs) for _ in range(1000)]}
    assert "steps" in refused(write(tmp_path / "some.pkl", content))


def test_every_cut_and_change_is_survived(tmp_path):
    whole = pickle.dumps({"model": {"w": ARRAYS["floats"]}, "__author__": "x"}, 2)
    path = tmp_path / "some.pkl"
    for length in range(len(whole)):
        refused(write(path, whole[:length]))
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        path.write_bytes(changed)
        try:
            got = read(path)
        except CheckpointMismatch as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(value, np.ndarray) for value in got["model"].values())


@pytest.mark.parametrize(
    "content", [7, [1], {"w": 1}, {"model": 1, "__author__": "x"}, {"blobs": 2}]
)
def test_file_without_arrays_is_refused(tmp_path, content):
    refused(write(tmp_path / "some.pkl", content))
