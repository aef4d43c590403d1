"""Processes: how they are started, and that none is left when one of them dies."""

import functools
import os
import subprocess
import sys
import time
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from processes import REPO
from ranks import free_port, run_children

from yolact_d2.data.shapes import generate_shapes
from yolact_d2.engine import check_devices, launch, train_net

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def parse(command):
    with mock.patch.object(sys, "argv", ["train_net.py", *command.split()]):
        return train_net.parse_args()


def run(main, command, seconds=60):
    """Launch on the CPU, with processes that are forked instead of spawned, to save time."""
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = fork
    launch(main, parse(command), "cpu", timedelta(seconds=seconds))


def print_rank(args):
    assert dist.get_backend() == "gloo"
    size, local_size = torch.ones(1), torch.ones(1)
    dist.all_reduce(size)
    dist.all_reduce(local_size, group=comm.get_local_process_group())
    # In one write, so that the lines of two processes do not mix.
    line = f"rank {comm.get_rank()} of {int(size)}, {comm.get_local_rank()} of {int(local_size)}\n"
    os.write(1, line.encode())


def ranks_in(log):
    return sorted(line for line in log.splitlines() if line.startswith("rank "))


def test_two_processes_in_two_runs_at_once(tmp_path):
    for end in run_children(tmp_path, run, *[(print_rank, "--num-gpus 2")] * 2):
        assert end.code == 0, end.log
        assert ranks_in(end.log) == ["rank 0 of 2, 0 of 2", "rank 1 of 2, 1 of 2"]


def two_machines(num_gpus):
    url = f"--num-machines 2 --num-gpus {num_gpus} --dist-url tcp://127.0.0.1:{free_port()}"
    return [f"{url} --machine-rank {rank}" for rank in range(2)]


def test_two_machines(tmp_path):
    ends = run_children(tmp_path, run, *[(print_rank, command) for command in two_machines(2)])
    for machine, end in enumerate(ends):
        assert end.code == 0, end.log
        assert ranks_in(end.log) == [f"rank {2 * machine + i} of 4, {i} of 2" for i in range(2)]


def test_one_process_runs_here_without_a_process_group():
    for command in ("", "--num-gpus 1", "--num-gpus 0"):
        called = []
        launch(called.append, parse(command), "cpu", timedelta(seconds=60))
        assert len(called) == 1 and not dist.is_initialized()


def refuse_on_rank_1(args):
    if comm.get_rank() == 1:
        train_net.run(args)
    comm.synchronize()


@pytest.mark.parametrize("main", [train_net.run, refuse_on_rank_1])
def test_bad_input_is_reported_once_with_exit_status_2(tmp_path, main):
    command = "--num-gpus 2 --config-file yolact_shapes MODEL.WEIGHTS nowhere.pth"
    (end,) = run_children(tmp_path, run, (main, command))
    assert end.code == 2
    assert end.log.count("error: ") == end.log.count("no file 'nowhere.pth'") == 1
    assert "Traceback" not in end.log


def hang_on_rank_1(args):
    if comm.get_rank() == 1:
        time.sleep(50)
    comm.synchronize()


def test_waiting_for_a_process_ends_after_the_timeout(tmp_path):
    (end,) = run_children(tmp_path, run, (hang_on_rank_1, "--num-gpus 2", 2))
    assert end.code == 1 and "Timed out" in end.log


def die_on_rank_1(args):
    if comm.get_rank() == 1:
        os.kill(os.getpid(), 9)
    comm.synchronize()


def test_a_killed_process_ends_those_of_other_machines(tmp_path):
    ends = run_children(tmp_path, run, *[(die_on_rank_1, command) for command in two_machines(1)])
    assert [end.code for end in ends] == [1, 1]
    assert "SIGKILL" in ends[1].log


# train_net.py, of which rank 1 is killed in its third step. Processes that Detectron2 spawns import
# it, too.
KILLED = f"""
import os, sys
sys.path.insert(0, {str(REPO)!r})
from detectron2.utils import comm
from yolact_d2.engine.train_net import main
from yolact_d2.modeling import YOLACT

def forward(self, batch, real=YOLACT.forward, steps=[]):
    steps.append(None)
    if comm.get_rank() == 1 and len(steps) == 3:
        print("killed", flush=True)
        os.kill(os.getpid(), 9)
    return real(self, batch)

YOLACT.forward = forward
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("launcher", ["torchrun", "--num-gpus"])
def test_no_process_is_left_when_one_is_killed(tmp_path, launcher):
    generate_shapes(str(tmp_path / "shapes"), num_train=8, num_val=1)
    (tmp_path / "killed.py").write_text(KILLED)
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    args = (
        f"killed.py --config-file {REPO}/configs/yolact_shapes.yaml MODEL.DEVICE cpu "
        "INPUT.IMAGE_SIZE 64 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 SOLVER.MAX_ITER 999 "
        "DIST_TIMEOUT_SECONDS 60 OUTPUT_DIR out"
    ).split()
    if launcher == "torchrun":
        command = [*torchrun, *args]
    else:
        command = [args[0], "--num-gpus", "2", *args[1:]]
    # Reading the output to its end waits for all processes that hold it.
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode != 0
    assert "killed\n" in done.stdout and "SIGKILL" in done.stderr, done.stderr


def test_each_process_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for command, device in (("--num-gpus 2", "cuda"), ("--num-gpus 3", "cpu"), ("", "cuda:1")):
        check_devices(parse(command), device)
    with pytest.raises(ValueError, match="--num-gpus is 3, but this machine has 2 GPUs"):
        check_devices(parse("--num-gpus 3"), "cuda")
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:1'"):
        check_devices(parse("--num-gpus 2"), "cuda:1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="--nproc-per-node is 3, but this machine has 2 GPUs"):
        check_devices(parse(""), "cuda")
