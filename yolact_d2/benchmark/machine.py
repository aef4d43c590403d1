"""What the figures depend on, besides the models."""

import datetime
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "opencv-python", "fvcore")


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Facts for the record; device: that of the models."""
    facts: dict[str, str | int] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "device": str(device),
        "cpu": cpu_model(),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            # Another distribution of it, such as opencv-python-headless.
            continue
    facts["command"] = " ".join(["python", *sys.argv])
    return facts
