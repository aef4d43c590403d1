"""Start the processes of a run: Detectron2's launcher, and torchrun."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

BAD_INPUT_STATUS = 2  # exit status for bad input, that of argparse


def check_devices(args: argparse.Namespace, device: str) -> None:
    """Check that each process of this machine can have a GPU of its own, see :func:`launch`.

    Raises:
        ValueError: if there are fewer GPUs, or MODEL.DEVICE names one of them.
    """
    if dist.is_torchelastic_launched():
        option, num_processes = "torchrun's --nproc-per-node", int(os.environ["LOCAL_WORLD_SIZE"])
    else:
        option, num_processes = "--num-gpus", args.num_gpus
    if num_processes <= 1 or not device.startswith("cuda"):
        return
    if ":" in device:
        raise ValueError(
            f"{option} is {num_processes}, but MODEL.DEVICE is {device!r}: set it to 'cuda', then "
            "each process uses its own GPU"
        )
    num_gpus = torch.cuda.device_count()
    if num_processes > num_gpus:
        raise ValueError(f"{option} is {num_processes}, but this machine has {num_gpus} GPUs")


def launch(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    device: str,
    timeout: timedelta,
) -> None:
    """Run `main(args)` in this process, if torchrun has started it or if it is the only one, or
    else in the processes that Detectron2's launcher starts.

    Args:
        main: a function at the top level of its module, so that it can be pickled.
        args: of a parser like Detectron2's `default_argument_parser`.
        device: MODEL.DEVICE. Processes communicate by gloo on "cpu", by NCCL on "cuda".
        timeout: how long a process waits for the others in a collective.

    Raises:
        SystemExit: with status 2, if a new process ended with it. It has printed why.
        ProcessRaisedException, ProcessExitedException: if a new process failed otherwise.
    """
    if dist.is_torchelastic_launched():
        _join_torchrun(device, timeout)
        return _run(main, args)
    if args.num_gpus * args.num_machines > 1 and not device.startswith("cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Detectron2 uses NCCL where it sees a GPU.
    try:
        engine.launch(
            _run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
            timeout=timeout,
        )
    except ProcessExitedException as error:
        if error.exit_code == BAD_INPUT_STATUS:
            sys.exit(BAD_INPUT_STATUS)
        raise


def _run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    main(args)
    if dist.is_initialized():
        dist.destroy_process_group()  # Its threads can abort a process that ends without this.


def _join_torchrun(device: str, timeout: timedelta) -> None:
    """Set up a process of torchrun as Detectron2's launcher sets up its own."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
