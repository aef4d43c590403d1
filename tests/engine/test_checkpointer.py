"""Checkpoints when the process is killed, the disk is full, or a file is damaged."""

import io
import logging
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from yolact_d2.checkpoint import CheckpointMismatch
from yolact_d2.engine import TrainingCheckpointer
from yolact_d2.engine import checkpointer as module


class Counter:
    """Something to be saved along."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def checkpointer(folder):
    return TrainingCheckpointer(nn.Linear(30, 40), str(folder), trainer=Counter())


def save(folder, iteration, name=None):
    """Save weights and a counter that tell the iteration."""
    saver = checkpointer(folder)
    with torch.no_grad():
        saver.model.weight.fill_(iteration)
    saver.checkpointables["trainer"].value = iteration
    saver.save(name or f"model_{iteration:07d}", iteration=iteration)


def resumed(folder, path=""):
    """The iteration that a new process goes on from; None if it starts anew."""
    loader = checkpointer(folder)
    with torch.no_grad():
        loader.model.weight.fill_(-1)
    extra = loader.resume_or_load(path, resume=True)
    iteration = extra.get("iteration")
    if iteration is not None:
        assert (loader.model.weight == iteration).all()
        assert loader.checkpointables["trainer"].value == iteration
    return iteration


def tag(folder):
    return (folder / "last_checkpoint").read_text()


def test_the_last_is_resumed(tmp_path):
    for iteration in (3, 7, 11):
        save(tmp_path, iteration)
    assert tag(tmp_path) == "model_0000011.pth"
    assert checkpointer(tmp_path).get_checkpoint_file() == str(tmp_path / "model_0000011.pth")
    assert resumed(tmp_path) == 11
    assert sorted(os.listdir(tmp_path)) == [
        "last_checkpoint", "model_0000003.pth", "model_0000007.pth", "model_0000011.pth"
    ]  # fmt: skip


def test_without_checkpoints_weights_are_loaded(tmp_path):
    save(tmp_path / "..", 5, "elsewhere")
    os.remove(tmp_path / ".." / "last_checkpoint")
    loader = checkpointer(tmp_path)
    assert not loader.has_checkpoint() and loader.get_checkpoint_file() == ""
    loader.resume_or_load(str(tmp_path / ".." / "elsewhere.pth"), resume=True)
    assert (loader.model.weight == 5).all()
    assert loader.checkpointables["trainer"].value == 0  # not resumed


def test_without_resume_weights_are_loaded(tmp_path):
    save(tmp_path, 3)
    loader = checkpointer(tmp_path)
    loader.resume_or_load("", resume=False)
    assert loader.checkpointables["trainer"].value == 0


def _die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def _die_within(data, file):
    """torch.save, killed when half of it is written."""
    whole = io.BytesIO()
    REAL_SAVE(data, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    _die()


REAL_SAVE = torch.save
# Where the process dies, and whether the checkpoint is there then.
MOMENTS = {
    "before writing": (torch, "save", _die, False),
    "while writing": (torch, "save", _die_within, False),
    "before it is on the disk": (os, "fsync", _die, False),
    "before it is tagged": (TrainingCheckpointer, "tag_last_checkpoint", _die, False),
    "before it gets its name": (os, "replace", None, False),
    "afterwards": (TrainingCheckpointer, "save", None, True),
}


def killed(owner, name, replacement, *args):
    """Save in a process that dies in a function of `owner`."""
    real = getattr(owner, name)

    def after_the_tag(source, target):
        if not target.endswith("last_checkpoint"):
            _die()
        real(source, target)

    def afterwards(*args, **kwargs):
        real(*args, **kwargs)
        _die()

    pid = os.fork()
    if pid == 0:
        setattr(owner, name, replacement or (after_the_tag if owner is os else afterwards))
        save(*args)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(tmp_path, moment):
    save(tmp_path, 3)
    *where, is_there = MOMENTS[moment]
    killed(*where, tmp_path, 7)
    assert (tmp_path / "model_0000007.pth").exists() == is_there
    assert resumed(tmp_path) == (7 if is_there else 3)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_when_there_was_one_of_this_name(tmp_path, moment):
    save(tmp_path, 9, "model_final")
    save(tmp_path, 11)
    *where, is_there = MOMENTS[moment]
    killed(*where, tmp_path, 12, "model_final")
    assert resumed(tmp_path) == (12 if is_there else 11)


def test_what_another_process_is_writing_is_left_alone(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def save_while_another_resumes(data, file):
        REAL_SAVE(data, file)
        assert resumed(tmp_path) == 3

    monkeypatch.setattr(torch, "save", save_while_another_resumes)
    save(tmp_path, 7)
    assert resumed(tmp_path) == 7


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    save(tmp_path, 3)
    saver = checkpointer(tmp_path)
    with pytest.raises(CheckpointMismatch, match="numpy"):
        saver.save("model_0000007", iteration=7, best=np.float64(0.5))
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000003.pth"]
    assert tag(tmp_path) == "model_0000003.pth"


def test_the_counters_of_torchs_schedulers_are_saved(tmp_path):
    model = nn.Linear(30, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2])
    TrainingCheckpointer(model, str(tmp_path), scheduler=scheduler).save("a", iteration=1)
    loaded = TrainingCheckpointer(model, str(tmp_path), scheduler=scheduler).load(
        str(tmp_path / "a.pth")
    )
    assert loaded["iteration"] == 1 and scheduler.milestones == {1: 1, 2: 2}


def _full(*args):
    raise OSError(28, "No space left on device")


def _torchs_full(*args):
    # As torch.save tells it.
    try:
        _full()
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:1]")


@pytest.mark.parametrize(
    "owner, name, fail",
    [(torch, "save", _torchs_full), (os, "fsync", _full), (os, "replace", _full)],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, owner, name, fail):
    save(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 7)
    assert tag(tmp_path) == "model_0000003.pth"
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000003.pth"]
    assert resumed(tmp_path) == 3


def cut(path, length):
    with open(path, "r+b") as file:
        file.truncate(length if length >= 0 else os.path.getsize(path) + length)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("length", [0, 1, 100, 3000, -1000, -1])
def test_a_truncated_file_is_named_and_the_one_before_used(tmp_path, caplog, length):
    save(tmp_path, 3)
    save(tmp_path, 7)
    cut(tmp_path / "model_0000007.pth", length)
    with caplog.at_level(logging.WARNING):
        assert resumed(tmp_path) == 3
    assert f"{tmp_path / 'model_0000007.pth'} is truncated" in caplog.text


def test_a_changed_byte_is_noticed(tmp_path, caplog):
    save(tmp_path, 3)
    save(tmp_path, 7)
    flip(tmp_path / "model_0000007.pth", 0.5)  # among the weights
    assert resumed(tmp_path) == 3
    assert "model_0000007.pth" in caplog.text


def test_several_damaged_files(tmp_path, caplog):
    for iteration in (3, 7, 10, 11, 100):
        save(tmp_path, iteration)
    for iteration in (11, 10, 100):
        cut(tmp_path / f"model_{iteration:07d}.pth", -1)
    assert resumed(tmp_path) == 7
    named = [record for record in caplog.records if "is truncated" in record.getMessage()]
    assert len(named) == 3


def test_nothing_but_damaged_files_is_an_error(tmp_path):
    for iteration in (3, 7):
        save(tmp_path, iteration)
        cut(tmp_path / f"model_{iteration:07d}.pth", 50)
    with pytest.raises(CheckpointMismatch, match="model_0000007.pth is .*model_0000003.pth is "):
        resumed(tmp_path)


@pytest.mark.parametrize(
    "content", [None, b"", b"model_0000099.pth", b"\xff\xfe", b"../model_0000099.pth", b"."]
)
def test_a_tag_that_names_nothing(tmp_path, content):
    for iteration in (3, 10, 7):
        save(tmp_path, iteration)
    os.remove(tmp_path / "last_checkpoint")
    if content is not None:
        (tmp_path / "last_checkpoint").write_bytes(content)
    assert checkpointer(tmp_path).has_checkpoint()
    assert resumed(tmp_path) == 10


def test_an_older_one_can_be_tagged_by_hand(tmp_path):
    for iteration in (3, 7):
        save(tmp_path, iteration)
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth\n")
    assert resumed(tmp_path) == 3


def test_without_a_tag_the_last_iteration_counts(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 7)
    save(tmp_path, 9, "model_final")
    assert resumed(tmp_path) == 9
    os.remove(tmp_path / "last_checkpoint")
    assert resumed(tmp_path) == 9
    # The run went on, and its newest file is damaged.
    save(tmp_path, 11)
    cut(tmp_path / "model_0000011.pth", -1)
    assert resumed(tmp_path) == 9
    save(tmp_path, 15)
    os.remove(tmp_path / "last_checkpoint")
    assert resumed(tmp_path) == 15


def test_weights_alone_are_nothing_to_resume_from(tmp_path):
    torch.save(nn.Linear(30, 40).state_dict(), tmp_path / "model_final.pth")
    with pytest.raises(CheckpointMismatch, match="model_final.pth has weights, but not .*trainer"):
        resumed(tmp_path)
    save(tmp_path, 3)
    assert resumed(tmp_path) == 3


def test_a_state_of_another_optimizer_is_refused(tmp_path):
    model = nn.Linear(30, 40)
    optimizers = [
        torch.optim.SGD(parameters, lr=0.1) for parameters in (model.parameters(), [model.weight])
    ]
    saver, loader = (
        TrainingCheckpointer(model, str(tmp_path), optimizer=optimizer) for optimizer in optimizers
    )
    saver.save("model_0000003", iteration=3)
    with pytest.raises(CheckpointMismatch, match="model_0000003.pth is not of this run .*options"):
        loader.resume_or_load("")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_disk_that_cannot_be_read_is_not_a_damaged_file(tmp_path, monkeypatch, error):
    for iteration in (3, 7):
        save(tmp_path, iteration)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        resumed(tmp_path)


@pytest.mark.parametrize("here", [True, False])
def test_processes_that_see_other_files_are_an_error(tmp_path, monkeypatch, here):
    """As if there were a main process on another machine."""
    if here:
        save(tmp_path, 3)
    theirs = "" if here else str(tmp_path / "model_0000003.pth")

    def all_gather(value):
        return [(theirs, None), value] if isinstance(value, tuple) else [True, value]

    monkeypatch.setattr(module.comm, "all_gather", all_gather)
    with pytest.raises(CheckpointMismatch, match="OUTPUT_DIR must be on storage"):
        resumed(tmp_path)


def test_only_the_main_process_writes(tmp_path):
    saver = TrainingCheckpointer(nn.Linear(3, 4), str(tmp_path), save_to_disk=False)
    saver.save("model_0000001", iteration=1)
    assert not os.listdir(tmp_path)
