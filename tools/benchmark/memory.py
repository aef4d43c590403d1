"""Peak memory, measured in a process of its own."""

import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")


def peak_memory(task: Callable, *args: Any) -> dict[str, Any]:
    """Run ``task(*args)`` in a new process.

    Returns:
        bytes: "process", its largest resident set, with Python and torch; "before", that before
        the task began; "gpu", the most that the CUDA allocator had given out, None without a GPU.
        If the process fails, for instance because it is killed for its memory, only "failure",
        the reason.
    """
    # A forked process would count this one's memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, task, *args).result()
        except Exception as error:
            return {"failure": f"{type(error).__name__}: {error}"}


def _measure(task: Callable, *args: Any) -> dict[str, int | None]:
    before = high_water()
    task(*args)
    gpu = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    return {"process": high_water(), "before": before, "gpu": max(gpu, default=0) or None}


def high_water() -> int:
    """The largest resident set of this process so far, in bytes."""
    if _STATUS.exists():
        # On Linux ru_maxrss starts with the memory of the process that started this one.
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())[1]
        return int(kilobytes) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
