"""Processes of a test: forked, for importing torch takes seconds, and with a log of their own."""

import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from plain import eventually

_FORK = multiprocessing.get_context("fork")


class Ended(NamedTuple):
    code: int
    log: str


class Child:
    def __init__(self, log: Path, target: Callable, *args: Any):
        self.log = log
        self.process = _FORK.Process(target=_run, args=(str(log), target, *args))
        self.process.start()

    def end(self, seconds: float = 60.0) -> Ended:
        """Wait for its end, and see to it."""
        # Not `join`, which waits for the children of the child too.
        hangs = not eventually(lambda: self.process.exitcode is not None, seconds)
        self.process.kill()
        self.process.join()
        log = self.log.read_text()
        assert not hangs, f"still running after {seconds} s:\n{log}"
        return Ended(self.process.exitcode, log)


def run_children(folder: Path, target: Callable, *arguments: Sequence[Any]) -> list[Ended]:
    """A child for each of `arguments`, at the same time."""
    children = [
        Child(folder / f"{number}.log", target, *args) for number, args in enumerate(arguments)
    ]
    return [child.end() for child in children]


def run_ranks(folder: Path, target: Callable, *args: Any, world_size: int = 2) -> list[Ended]:
    """`target(*args)` in each process of a gloo group."""
    store = f"file://{folder / 'store'}"
    ranks = [(store, world_size, rank, target, *args) for rank in range(world_size)]
    return run_children(folder, as_rank, *ranks)


def as_rank(store: str, world_size: int, rank: int, target: Callable, *args: Any) -> None:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    comm.create_local_process_group(world_size)
    target(*args)


def assert_success(ends: list[Ended]) -> None:
    logs = "\n".join(f"-- exit status {end.code}:\n{end.log}" for end in ends)
    assert all(end.code == 0 for end in ends), logs


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(log: str, target: Callable, *args: Any) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    logging.basicConfig(stream=sys.stderr, force=True)
    # OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)
    target(*args)
