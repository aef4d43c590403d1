"""Peak memory of one model, measured in a process of its own.

    python -m yolact_d2.benchmark.memory < request.json

is that process. It does what was done when the model was timed, once.
"""

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .pictures import PictureSet, distinct_batches
from .runner import Runner
from .specs import ModelSpec
from .training import TrainingSettings, TrainingStep

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Request:
    spec: ModelSpec
    variant: str
    pictures: PictureSet
    batch_size: int
    num_detections: int
    training: TrainingSettings | None = None
    """Measure training iterations, not inference."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        fields = json.loads(text)
        spec, pictures, training = (fields.pop(k) for k in ("spec", "pictures", "training"))
        spec["opts"] = tuple(spec["opts"])
        pictures.update(files=tuple(pictures["files"]), size=tuple(pictures["size"]))
        return cls(
            ModelSpec(**spec),
            pictures=PictureSet(**pictures),
            training=TrainingSettings(**training) if training else None,
            **fields,
        )


@dataclass(frozen=True)
class PeakMemory:
    """Bytes; None where it could not be measured."""

    process: int | None = None
    """The largest resident set of the process, with Python, torch and the pictures."""
    before: int | None = None
    """That before there was a model."""
    gpu: int | None = None
    """The most that the CUDA allocator had given out. None without a GPU."""
    failure: str = ""
    """Why there is no figure."""


def high_water() -> int:
    """The largest resident set of this process so far, in bytes."""
    if _STATUS.exists():
        # Linux lets a new process start with the ru_maxrss of the one that started it.
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()).group(1)
        return int(kilobytes) * 1024
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_peak_memory(request: Request) -> PeakMemory:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=request.to_json(),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        # Above all one that was killed because there is not that much memory.
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return PeakMemory(failure=f"the process ended with {done.returncode}: {last[0]}")
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def work(request: Request) -> dict[str, int | None]:
    """What the process does; see :class:`PeakMemory`."""
    before = high_water()
    pictures = request.pictures
    if request.training:
        step = TrainingStep(request.spec, pictures.first_size(), request.training)
        device = step.device
        for _ in range(2):  # the optimizer's state is there from the first step on
            step()
    else:
        runner = Runner(request.spec, request.variant, request.num_detections)
        device = runner.device
        runner.calibrate(pictures.picture(i) for i in range(len(pictures)))
        for batch in distinct_batches(len(pictures), request.batch_size):
            runner([pictures.picture(i) for i in batch])
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"process": high_water(), "before": before, "gpu": gpu}


if __name__ == "__main__":
    print(json.dumps(work(Request.from_json(sys.stdin.read()))))
