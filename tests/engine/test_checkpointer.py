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


class Counter:
    """Something to store beside the model."""

    value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def checkpointer(folder):
    return TrainingCheckpointer(nn.Linear(30, 40), str(folder), trainer=Counter())


def save(folder, iteration, name=None):
    """Save weights and a counter that are equal to the iteration."""
    saver = checkpointer(folder)
    nn.init.constant_(saver.model.weight, iteration)
    saver.checkpointables["trainer"].value = iteration
    saver.save(name or f"model_{iteration:07d}", iteration=iteration)


def resumed(folder):
    """The iteration that a new process resumes from; None if there is no checkpoint."""
    loader = checkpointer(folder)
    nn.init.constant_(loader.model.weight, -1)
    iteration = loader.resume_or_load("", resume=True).get("iteration")
    if iteration is not None:
        assert (loader.model.weight == iteration).all()
        assert loader.checkpointables["trainer"].value == iteration
    return iteration


def truncate(path, length):
    with open(path, "r+b") as file:
        file.truncate(length if length >= 0 else os.path.getsize(path) + length)


def test_the_tag_names_the_checkpoint_to_resume(tmp_path):
    assert resumed(tmp_path) is None
    for iteration in (3, 10, 7):
        save(tmp_path, iteration)
        assert resumed(tmp_path) == iteration
    assert sorted(os.listdir(tmp_path)) == [
        "last_checkpoint", "model_0000003.pth", "model_0000007.pth", "model_0000010.pth"
    ]  # fmt: skip
    for tag, expected in (
        (b"model_0000003.pth\n", 3),
        (b"model_99.pth", 10),
        (b"", 10),
        (b"\xff", 10),
    ):
        (tmp_path / "last_checkpoint").write_bytes(tag)
        assert resumed(tmp_path) == expected
    os.remove(tmp_path / "last_checkpoint")
    assert resumed(tmp_path) == 10


def test_other_files_in_the_folder_are_not_resumed(tmp_path):
    save(tmp_path, 9, "pretrained")
    (tmp_path / "darknet53.pth").write_text("damaged")
    os.remove(tmp_path / "last_checkpoint")
    assert checkpointer(tmp_path).last_undamaged() == ""


@pytest.mark.parametrize("resume", [True, False])
def test_other_weights_are_loaded_without_the_state_of_the_run(tmp_path, resume):
    save(tmp_path, 5, "elsewhere")
    (tmp_path / "run").mkdir()
    if not resume:
        save(tmp_path / "run", 3)
    loader = checkpointer(tmp_path / "run")
    loader.resume_or_load(str(tmp_path / "elsewhere.pth"), resume=resume)
    assert (loader.model.weight == 5).all()
    assert loader.checkpointables["trainer"].value == 0


REAL_SAVE = torch.save


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_and_die(data, file):
    whole = io.BytesIO()
    REAL_SAVE(data, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    die()


MOMENTS = {
    "before writing": (torch, "save", die),
    "while writing": (torch, "save", write_half_and_die),
    "before the file is on the disk": (os, "fsync", die),
    "before it gets its name": (os, "replace", die),
    "before it is tagged": (TrainingCheckpointer, "tag_last_checkpoint", die),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["model_0000012", "model_final"])
def test_a_process_killed_while_saving_leaves_the_last_checkpoint(tmp_path, moment, name):
    save(tmp_path, 9, "model_final")  # of a shorter run in the same folder
    save(tmp_path, 11)
    pid = os.fork()
    if pid == 0:
        setattr(*MOMENTS[moment])
        save(tmp_path, 12, name)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert resumed(tmp_path) == 11


def disk_is_full(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("owner, function", [(torch, "save"), (os, "fsync"), (os, "replace")])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, owner, function):
    save(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, disk_is_full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 7)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000003.pth"]
    assert resumed(tmp_path) == 3


def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(CheckpointMismatch, match="numpy"):
        checkpointer(tmp_path).save("model_0000007", iteration=7, best=np.float64(0.5))
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000003.pth"]


def test_a_truncated_file_is_named_and_the_one_before_is_used(tmp_path, caplog):
    save(tmp_path, 3)
    save(tmp_path, 7)
    for length in (-1, -1000, 3000, 100, 1, 0):
        truncate(tmp_path / "model_0000007.pth", length)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert resumed(tmp_path) == 3
        assert f"{tmp_path / 'model_0000007.pth'} is truncated" in caplog.text


def test_the_undamaged_checkpoint_of_the_highest_iteration_is_used(tmp_path):
    for iteration in (3, 10, 11, 100):
        save(tmp_path, iteration)
    save(tmp_path, 7, "model_final")
    save(tmp_path, 12)
    for iteration in (10, 11, 12, 100):
        truncate(tmp_path / f"model_{iteration:07d}.pth", -1)
    assert resumed(tmp_path) == 7


def test_it_is_an_error_if_all_checkpoints_are_damaged(tmp_path):
    for iteration in (3, 7):
        save(tmp_path, iteration)
        truncate(tmp_path / f"model_{iteration:07d}.pth", 50)
    with pytest.raises(CheckpointMismatch, match="damaged: .*model_0000007.pth.*model_0000003.pth"):
        resumed(tmp_path)


def test_weights_alone_are_not_resumed_from(tmp_path):
    torch.save(nn.Linear(30, 40).state_dict(), tmp_path / "model_final.pth")
    assert resumed(tmp_path) is None
    save(tmp_path, 3)
    assert resumed(tmp_path) == 3
