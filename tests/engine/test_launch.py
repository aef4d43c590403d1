import functools
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from ranks import free_port, run_children

from yolact_d2.engine import check_launch, launch, watch_ranks

REPO = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
}


def parse(command):
    return default_argument_parser().parse_args(command.split())


def run(main, command):
    """`launch`, with processes that are forked and tell each other often."""
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = fork
    watch = functools.partial(watch_ranks, interval=0.05, grace=0.3)
    import_module("yolact_d2.engine.launch").watch_ranks = watch
    launch(main, parse(command), "cpu")


def say_who(args):
    ones = torch.ones(1)
    dist.all_reduce(ones)
    local = torch.ones(1)
    dist.all_reduce(local, group=comm.get_local_process_group())
    who = f"{comm.get_rank()}/{comm.get_world_size()}/{comm.get_local_rank()}"
    # One write, or the lines of two processes mix.
    os.write(1, f"{who} {int(ones)} {int(local)} {args.num_gpus}\n".encode())


def said(log):
    return sorted(line for line in log.splitlines() if "/" in line.split(" ")[0])


def test_one_machine_and_two_runs_at_once(tmp_path):
    for end in run_children(tmp_path, run, *[(say_who, "--num-gpus 2")] * 2):
        assert end.code == 0, end.log
        assert said(end.log) == ["0/2/0 2 2 2", "1/2/1 2 2 2"]
        assert "run on its CPU" in end.log


def say_what_is_visible(args):
    os.write(1, f"<{os.environ['CUDA_VISIBLE_DEVICES']}> {dist.get_backend()}\n".encode())


def test_on_the_cpu_gpus_are_not_seen(tmp_path):
    (end,) = run_children(tmp_path, run, (say_what_is_visible, "--num-gpus 2"))
    assert end.code == 0 and end.log.count("<> gloo\n") == 2


def test_two_machines(tmp_path):
    url = f"--num-machines 2 --dist-url tcp://127.0.0.1:{free_port()}"
    commands = [f"{url} --num-gpus 2 --machine-rank {rank}" for rank in range(2)]
    ends = run_children(tmp_path, run, *[(say_who, command) for command in commands])
    for rank, end in enumerate(ends):
        assert end.code == 0, end.log
        assert said(end.log) == [f"{2 * rank + local}/4/{local} 4 2 2" for local in range(2)]


def say_alone(args):
    print(f"{comm.get_world_size()} {dist.is_initialized()}")


def test_one_process_is_this_one(tmp_path):
    (end,) = run_children(tmp_path, run, (say_alone, ""))
    assert end.code == 0 and end.log == "1 False\n"


def test_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(REPO)!r}, {str(REPO / 'tests' / 'engine')!r}]\n"
        f"sys.path.append({str(REPO / 'tests')!r})\n"
        "from test_launch import launch, parse, say_who\n"
        "launch(say_who, parse(''), 'cpu')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said(done.stdout) == ["0/2/0 2 2 1", "1/2/1 2 2 1"]


def test_torchrun_with_one_process(tmp_path):
    def main():
        port = str(free_port())
        os.environ.update(TORCHRUN, WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", GROUP_WORLD_SIZE="1")
        os.environ.update(RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        launch(say_who, parse(""), "cpu")
        assert not dist.is_initialized()

    (end,) = run_children(tmp_path, main, ())
    assert end.code == 0 and said(end.log) == ["0/1/0 1 1 1"], end.log


def refuse(args):
    if comm.get_rank() == 1:
        print("error: no such file", file=sys.stderr)
        sys.exit(2)
    time.sleep(30)


def test_a_refused_input_is_told_once(tmp_path):
    (end,) = run_children(tmp_path, run, (refuse, "--num-gpus 2"))
    assert end.code == 2
    assert "error: no such file" in end.log and "Traceback" not in end.log


def fail(args):
    if comm.get_rank() == 1:
        raise ValueError("a bad image")
    time.sleep(30)


def test_an_error_keeps_its_traceback(tmp_path):
    (end,) = run_children(tmp_path, run, (fail, "--num-gpus 2"))
    assert end.code == 1
    assert 'raise ValueError("a bad image")' in end.log


def die(args):
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)
    print("never told")


def test_a_process_that_is_killed_ends_those_of_other_machines(tmp_path):
    url = f"--num-machines 2 --num-gpus 1 --dist-url tcp://127.0.0.1:{free_port()}"
    first, second = run_children(
        tmp_path, run, *[(die, f"{url} --machine-rank {rank}") for rank in range(2)]
    )
    assert first.code == second.code == 1
    assert "rank 1 is gone" in first.log and "never told" not in first.log
    assert "SIGKILL" in second.log


@pytest.mark.parametrize(
    "command, gpus, device, message",
    [
        ("--num-gpus 0", 1, "cuda", "--num-gpus and --num-machines must be 1 or more"),
        ("--num-gpus 3", 2, "cuda", "--num-gpus is 3, but this machine has 2 GPUs"),
        ("--num-gpus 2", 2, "cuda:1", "MODEL.DEVICE is 'cuda:1'.*have to be 'cuda'"),
        ("--num-machines 2 --machine-rank 2", 1, "cuda", "--machine-rank is 2.* 0 to 1"),
        ("--num-machines 2", 1, "cuda", "needs --dist-url tcp://ADDRESS:PORT"),
        ("--num-machines 2 --dist-url auto", 1, "cuda", "needs --dist-url"),
        ("--num-machines 2 --dist-url file:///x", 1, "cuda", "needs --dist-url"),
    ],
)
def test_what_is_wrong_is_named_before_the_start(monkeypatch, command, gpus, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=message):
        check_launch(parse(command), device)


@pytest.mark.parametrize(
    "command, gpus, device",
    [
        ("", 1, "cuda:0"),
        ("", 0, "cpu"),
        ("--num-gpus 2", 2, "cuda"),
        ("--num-gpus 3", 2, "cpu"),
        ("--num-gpus 3", 0, "cpu"),
        ("--num-machines 2 --machine-rank 1 --dist-url tcp://node0:29500", 1, "cuda"),
    ],
)
def test_what_is_right_is_not_refused(monkeypatch, command, gpus, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    check_launch(parse(command), device)


@pytest.mark.parametrize(
    "command, gpus, variables, message",
    [
        ("--num-gpus 2", 2, {}, "torchrun says how many.*leave out --num-gpus"),
        ("--dist-url tcp://node0:29500", 2, {}, "leave out"),
        ("", 1, {}, "--nproc-per-node is 2, but this machine has 1 GPUs"),
        ("", 2, {"WORLD_SIZE": "3"}, "2 here, which makes 4 processes on 2.*there are 3"),
        ("", 2, {}, None),
    ],
)
def test_under_torchrun(monkeypatch, command, gpus, variables, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {**TORCHRUN, **variables}.items():
        monkeypatch.setenv(name, value)
    if message is None:
        return check_launch(parse(command), "cuda")
    with pytest.raises(ValueError, match=message):
        check_launch(parse(command), "cuda")
