"""Reading checkpoint files: formats, damage, and code that must not run."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from plain import assert_equal

from yolact_d2.checkpoint import CheckpointMismatch, read_checkpoint, read_state_dict


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write(path, content):
    """Write `content` in the format of the suffix; .old is torch's format before 1.6."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".old")
    return str(path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.old"])
def test_what_training_saves_is_read(tmp_path, name):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.5, 0.9))
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.half().state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "iteration": 2**40,
        "note": None,
    }
    got = read_checkpoint(write(tmp_path / name, saved))
    assert_equal(got, saved)
    assert all(got["model"][key].dtype == value.dtype for key, value in saved["model"].items())


def test_safetensors_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = {"a.weight": torch.rand(2, 3), "b": torch.arange(4)}
    save_file(tensors, tmp_path / "some.safetensors")
    assert_equal(read_state_dict(str(tmp_path / "some.safetensors")), tensors)
    os.truncate(tmp_path / "some.safetensors", 60)
    with pytest.raises(CheckpointMismatch, match="some.safetensors is truncated"):
        read_state_dict(str(tmp_path / "some.safetensors"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_of_detectron2s_model_zoo_are_read(tmp_path, protocol):
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.ones(3, np.float16),
        "empty": np.zeros((0, 3), np.int64),
        "scalar": np.float32(2.5),
    }
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    got = read_checkpoint(str(tmp_path / "zoo.pkl"))["model"]
    for key, value in arrays.items():
        assert got[key].dtype == value.dtype and np.array_equal(got[key], value)


@pytest.mark.parametrize("name", ["some.pth", "some.old", "some.pkl"])
def test_code_in_a_file_is_never_executed(tmp_path, name):
    mark = tmp_path / "mark"
    calls = {
        "posix.mkdir": Call(os.mkdir, str(mark)),
        "posix.system": Call(os.system, f"mkdir {mark}"),
        "eval": Call(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "getattr": Call(getattr, "text", "upper"),
        "argparse.Namespace": argparse.Namespace(),
    }
    for asked, call in calls.items():
        for content in (call, {"model": call}, {"model": {"w": [1, (call, 2)]}}):
            path = write(tmp_path / name, content)
            message = rf"{name} .*never executed\): it asks for (__builtin__\.)?{asked}"
            with pytest.raises(CheckpointMismatch, match=message):
                read_checkpoint(path)
            assert not mark.exists()
    pickle.loads(pickle.dumps(calls["eval"]))  # so that the assertions above can fail
    assert mark.exists()


@pytest.mark.parametrize("name", ["some.pth", "some.old", "some.pkl"])
def test_truncated_file_is_named(tmp_path, name):
    tensor = torch.arange(5000.0)  # torch fails differently beyond a few kilobytes
    content = {"model": {"a": tensor.numpy() if name.endswith("pkl") else tensor}}
    path = write(tmp_path / name, content)
    with open(path, "rb") as file:
        whole = file.read()
    for length in [*range(0, len(whole), len(whole) // 50), len(whole) - 1]:
        with open(path, "wb") as file:
            file.write(whole[:length])
        with pytest.raises(CheckpointMismatch, match=f"{name} is truncated or not a checkpoint"):
            read_checkpoint(path)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "some.pth"
    for content in (b"<html>not found</html>", b"PK\x03\x04 but no archive"):
        path.write_bytes(content)
        with pytest.raises(CheckpointMismatch, match="some.pth is truncated or not a checkpoint"):
            read_checkpoint(str(path))
    for content in ([1, 2], 7, {"a": 1}, {"model": {"a": 1}}, {"model": [1]}):
        with pytest.raises(CheckpointMismatch, match="some.pth .*it holds no dict of tensors"):
            read_state_dict(write(path, content))
    tensors = {"a": torch.ones(2)}
    path = write(tmp_path / "some.pth", {"net": {}, "model": {"lr": 1}, "weights": tensors})
    assert read_state_dict(path).keys() == tensors.keys()
    path = write(tmp_path / "some.pth", {"model": {**tensors, "epoch": 3}, "ema": tensors})
    with pytest.raises(CheckpointMismatch, match="holds no dict of tensors"):
        read_state_dict(path)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read_checkpoint(str(tmp_path / "nowhere.pth"))
