"""Starting the processes of a run."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from .watch import watch_ranks

logger = logging.getLogger(__name__)

REFUSED = 2  # exit status of a program that has said what is wrong with its input, see argparse


def check_launch(args: argparse.Namespace, device: str) -> None:
    """Check how a run is to be started, before it is.

    Args:
        args: of a parser like Detectron2's `default_argument_parser`.
        device: MODEL.DEVICE.

    Raises:
        ValueError: naming the option, key or variable of torchrun that is wrong.
    """
    if dist.is_torchelastic_launched():
        _check_torchrun(args)
        num_local, num_processes = int(os.environ["LOCAL_WORLD_SIZE"]), _world_size()
        option = "torchrun's --nproc-per-node"
    else:
        _check_options(args)
        num_local, num_processes = args.num_gpus, args.num_gpus * args.num_machines
        option = "--num-gpus"
    if num_processes == 1:
        return
    if ":" in device:
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, but each of {num_processes} processes has a device of "
            f"its own: it would have to be {device.split(':')[0]!r}"
        )
    num_gpus = _num_gpus(device)
    if num_gpus and num_local > num_gpus:
        raise ValueError(f"{option} is {num_local}, but this machine has {num_gpus} GPUs")


def _check_torchrun(args: argparse.Namespace) -> None:
    if (args.num_gpus, args.num_machines, args.machine_rank) != (1, 1, 0) or _has_url(args):
        raise ValueError(
            "torchrun says how many processes there are: leave out --num-gpus, --num-machines, "
            "--machine-rank and --dist-url"
        )
    num_machines, num_local = int(os.environ["GROUP_WORLD_SIZE"]), os.environ["LOCAL_WORLD_SIZE"]
    if num_machines * int(num_local) != _world_size():
        raise ValueError(
            f"torchrun's --nproc-per-node is {num_local} here, which makes "
            f"{num_machines * int(num_local)} processes on {num_machines} machines, but there are "
            f"{_world_size()}: it must be the same on each"
        )


def _check_options(args: argparse.Namespace) -> None:
    if args.num_gpus < 1 or args.num_machines < 1:
        raise ValueError("--num-gpus and --num-machines must be 1 or more")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank is {args.machine_rank}: of --num-machines {args.num_machines} it "
            f"would have to be 0 to {args.num_machines - 1}"
        )
    url = urlsplit(args.dist_url)
    if args.num_machines > 1 and not (_has_url(args) and url.scheme == "tcp" and url.hostname):
        raise ValueError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://ADDRESS:PORT, the same on "
            "each machine: the address of machine 0 and a port that is free there"
        )


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, device: str):
    """Run `main(args)` in as many processes as torchrun has started, or as `args` ask for, and in
    this one if that is one.

    If one of them fails, all end, on other machines too: see :func:`watch_ranks`. Processes that
    this one starts and that end with exit status 2, for they have said why, end it likewise.

    Args:
        main: at the top level of its module, for it is imported by the processes.
        args, device: which :func:`check_launch` has checked.
    """
    if dist.is_torchelastic_launched():
        _join_torchrun(device)
        _main(main, args, _rank_0_of_torchrun())
        return
    if args.num_gpus * args.num_machines > 1 and not _num_gpus(device):
        logger.warning(f"The {args.num_gpus} processes of this machine run on its CPU, not GPUs.")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or Detectron2 would have them use NCCL
    several = args.num_machines > 1
    try:
        engine.launch(
            _main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            # Its fixed port cannot be shared by two runs.
            dist_url=args.dist_url if _has_url(args) else "auto",
            args=(main, args, urlsplit(args.dist_url).hostname if several else "127.0.0.1"),
        )
    except ProcessExitedException as error:
        if error.exit_code == REFUSED:
            sys.exit(REFUSED)
        raise


def _main(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, rank_0: str) -> None:
    with watch_ranks(rank_0):
        main(args)
    if dist.is_initialized():
        dist.destroy_process_group()


def _join_torchrun(device: str) -> None:
    """Do for a process of torchrun what Detectron2's `launch` does for its own."""
    has_gpu = _num_gpus(device) > 0
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=engine.DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()


def _rank_0_of_torchrun() -> str:
    one_machine = int(os.environ["LOCAL_WORLD_SIZE"]) == _world_size()
    return "127.0.0.1" if one_machine else os.environ["MASTER_ADDR"]


def _num_gpus(device: str) -> int:
    """How many GPUs of this machine a run on `device` has."""
    return torch.cuda.device_count() if device.startswith("cuda") else 0


def _world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def _has_url(args: argparse.Namespace) -> bool:
    return args.dist_url != engine.default_argument_parser().get_default("dist_url")
