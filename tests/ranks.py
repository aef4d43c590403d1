"""Run functions in several processes, forked because importing torch takes seconds."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm


class Ended(NamedTuple):
    code: int
    log: str


def run_children(
    folder: Path, target: Callable, *arguments: Sequence[Any], seconds: float = 60.0
) -> list[Ended]:
    """Run `target(*args)` in a process for each of `arguments`, at the same time.

    Their output goes to files in `folder`, which must exist.
    """
    logs = [folder / f"{number}.log" for number in range(len(arguments))]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_run, args=(str(log), target, *args))
        for log, args in zip(logs, arguments)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    hang = [log.read_text() for log, process in zip(logs, processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not hang, "\n".join([f"still running after {seconds} s:", *hang])
    return [Ended(process.exitcode, log.read_text()) for log, process in zip(logs, processes)]


def run_ranks(folder: Path, target: Callable, *args: Any, world_size: int = 2) -> list[Ended]:
    """Run `target(*args)` in each process of a gloo group."""
    store = f"file://{folder / 'store'}"
    ranks = [(store, world_size, rank, target, *args) for rank in range(world_size)]
    return run_children(folder, _run_rank, *ranks)


def assert_success(ends: list[Ended]) -> None:
    logs = "\n".join(f"-- exit status {end.code}:\n{end.log}" for end in ends)
    assert all(end.code == 0 for end in ends), logs


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run_rank(store: str, world_size: int, rank: int, target: Callable, *args: Any) -> None:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    comm.create_local_process_group(world_size)
    target(*args)


def _run(log: str, target: Callable, *args: Any) -> None:
    # Ignored where the tests run in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    logging.basicConfig(stream=sys.stderr, force=True)
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork.
    target(*args)
