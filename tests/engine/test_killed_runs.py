"""train_net.py, killed and resumed."""

import os
import signal

import pytest
import torch
from processes import REPO, run_programs

from yolact_d2.data.shapes import generate_shapes

# Runs train_net.py, and kills it at the given moment.
_KILLED = """
import os, runpy, signal, sys, torch
from yolact_d2.modeling import YOLACT

program, moment = sys.argv[1:3]
del sys.argv[:2]
sys.argv[0] = program

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def save(data, file, real=torch.save):
    if data["iteration"] == 3:
        file.write(b"half of it")
        file.flush()
        die()
    real(data, file)

def forward(self, batch, real=YOLACT.forward, steps=[]):
    steps.append(None)
    if len(steps) == 4:
        die()
    return real(self, batch)

if moment == "writing":
    torch.save = save
else:
    YOLACT.forward = forward
runpy.run_path(program, run_name="__main__")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    generate_shapes(str(folder / "datasets/shapes"), num_train=5, num_val=1)
    killed = folder / "killed.py"
    killed.write_text(_KILLED)
    train_net = REPO / "train_net.py"

    def command(output, *args, moment=None):
        program = [train_net] if moment is None else [killed, train_net, moment]
        return [
            *program, *args, "--config-file", REPO / "configs/yolact_shapes.yaml",
            *"MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 1 "
            "DATASETS.TEST () SOLVER.MAX_ITER 8 SOLVER.CHECKPOINT_PERIOD 2".split(),
            "OUTPUT_DIR", folder / output,
        ]  # fmt: skip

    env = {"DETECTRON2_DATASETS": str(folder / "datasets")}
    first = run_programs(
        command("whole"),
        command("killed", moment="writing"),
        command("killed", "--resume", moment="training"),
        **env,
    )
    left = sorted(os.listdir(folder / "killed"))
    # As the process that was killed while writing has left it to the one after it.
    (folder / "killed/.0123abcd.partial.model_0000005.pth").write_bytes(b"half of it")
    # The newest is damaged as well.
    with open(folder / "killed/model_0000003.pth", "r+b") as file:
        file.truncate(os.path.getsize(file.name) // 2)
    return folder, first, left, *run_programs(command("killed", "--resume"), **env)


def test_the_killed_ones_were_killed(runs):
    _, (whole, writing, training), left, _ = runs
    assert whole.returncode == 0, whole.stderr
    assert writing.returncode == -signal.SIGKILL, writing.stderr
    assert "Starting training from iteration 0" in writing.stdout
    assert training.returncode == -signal.SIGKILL, training.stderr
    assert "Starting training from iteration 2" in training.stdout
    assert [name for name in left if name.endswith(".pth")] == [
        "model_0000001.pth", "model_0000003.pth"
    ]  # fmt: skip


def test_the_damaged_file_is_named_and_the_one_before_it_used(runs):
    folder, _, _, last = runs
    assert last.returncode == 0, last.stderr
    assert f"{folder}/killed/model_0000003.pth is truncated" in last.stdout + last.stderr
    assert "Starting training from iteration 2" in last.stdout


def test_what_was_half_written_is_removed(runs):
    folder, *_ = runs
    assert not any("partial" in name for name in os.listdir(folder / "killed"))


def test_in_the_end_the_model_is_that_of_a_run_never_stopped(runs):
    folder, *_ = runs
    whole, killed = (
        torch.load(folder / name / "model_final.pth", weights_only=True)
        for name in ("whole", "killed")
    )
    assert whole["iteration"] == killed["iteration"] == 7
    for key, value in whole["model"].items():
        assert torch.equal(value, killed["model"][key]), key
