"""train_net.py, killed and resumed."""

import os
import signal

import pytest
import torch
from plain import assert_equal
from processes import REPO, run_programs

from yolact_d2.data.shapes import generate_shapes

# Runs train_net.py and kills it at the given moment.
KILLED = """
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

if moment == "while saving":
    torch.save = save
else:
    YOLACT.forward = forward
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_one_never_stopped(tmp_path):
    generate_shapes(str(tmp_path / "datasets/shapes"), num_train=5, num_val=1)
    (tmp_path / "killed.py").write_text(KILLED)
    train_net, folder = REPO / "train_net.py", tmp_path / "killed"

    def run(output, *args, moment=None):
        program = [train_net] if moment is None else [tmp_path / "killed.py", train_net, moment]
        command = [
            *program, *args, "--config-file", REPO / "configs/yolact_shapes.yaml",
            *"MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 1 "
            "DATASETS.TEST () SOLVER.MAX_ITER 8 SOLVER.CHECKPOINT_PERIOD 2".split(),
            "OUTPUT_DIR", tmp_path / output,
        ]  # fmt: skip
        (done,) = run_programs(command, DETECTRON2_DATASETS=str(tmp_path / "datasets"))
        return done

    done = run("killed", moment="while saving")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any("partial" in name for name in os.listdir(folder))
    done = run("killed", "--resume", moment="while training")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "Starting training from iteration 2" in done.stdout
    assert sorted(folder.glob("*.pth")) == [
        folder / "model_0000001.pth", folder / "model_0000003.pth"
    ]  # fmt: skip
    os.truncate(folder / "model_0000003.pth", 1000)
    done = run("killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"{folder}/model_0000003.pth is truncated" in done.stdout + done.stderr
    assert "Starting training from iteration 2" in done.stdout
    assert not any("partial" in name for name in os.listdir(folder))

    done = run("whole")
    assert done.returncode == 0, done.stderr
    assert_equal(
        *(
            torch.load(tmp_path / name / "model_final.pth", weights_only=True)
            for name in ("killed", "whole")
        )
    )
