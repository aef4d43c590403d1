"""All measurements of all models, one after the other."""

import datetime
import logging
import math
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count

from yolact_d2.data import build_test_loader
from yolact_d2.evaluation import build_evaluator

from .images import Source, make_batches, read
from .memory import peak_memory
from .models import Detector, ModelSpec
from .timing import StageClock, elapsed, interleave, median_by_key, summarize
from .training import TrainingStep, run_steps
from .variants import is_available


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    specs: Sequence[ModelSpec]
    """Ratios refer to the first."""
    images: dict[str, list[Source]]
    """Sets of images by name."""
    variants: Sequence[str] = ("float32",)
    batch_sizes: Sequence[int] = (1,)
    repeats: int = 20
    """Timed rounds."""
    dataset: str | None = None
    """A registered dataset, for the AP of the models with weights."""
    train_batch_size: int | None = None
    """None: training steps are not measured."""


class Benchmark:
    """Runs what the settings ask for.

    Attributes:
        results: "machine", "models", "speed", "training" and "notes", as written to JSON: times
            are in seconds, memory in bytes, AP in percent.
    """

    def __init__(self, settings: Settings):
        """Loads the models."""
        self.settings = settings
        self.detectors = [
            (Detector(spec, variant), variant)
            for spec in settings.specs
            for variant in settings.variants
            if is_available(variant, spec.load_cfg().MODEL.META_ARCHITECTURE)
        ]
        self.results: dict[str, Any] = {
            "machine": describe_machine(),
            "models": [],
            "speed": [],
            "training": [],
            "notes": [],
        }

    def run(self) -> dict[str, Any]:
        settings = self.settings
        for detector, variant in self.detectors:
            self.results["models"].append(self._describe(detector, variant))
        for name, sources in settings.images.items():
            images = [read(source) for source in sources]
            gflops = {spec.label: self._gflops(spec, images[0]) for spec in settings.specs}
            for batch_size in settings.batch_sizes:
                for row in self._speed(name, images, batch_size):
                    self.results["speed"].append({**row, "gflops": gflops[row["spec"]]})
        self.detectors = []  # training needs their memory
        if settings.train_batch_size:
            first = read(next(iter(settings.images.values()))[0])
            self._train(first.shape[:2], settings.train_batch_size)
        return self.results

    def _describe(self, detector: Detector, variant: str) -> dict[str, Any]:
        cfg, dataset = detector.cfg, self.settings.dataset
        ap = {}
        if dataset and cfg.MODEL.WEIGHTS:
            with tempfile.TemporaryDirectory() as folder:
                evaluator = build_evaluator(cfg, dataset, folder)
                loader = build_test_loader(cfg, dataset)
                found = inference_on_dataset(detector.model, loader, evaluator)
            ap = {task: values["AP"] for task, values in found.items() if "AP" in values}
        return {
            "model": detector.label,
            "config_file": detector.spec.config_file,
            "opts": list(detector.spec.opts),
            "variant": variant,
            "weights": cfg.MODEL.WEIGHTS or "random",
            "parameters": parameter_count(detector.model)[""],
            **{f"{task} AP": None if math.isnan(value) else value for task, value in ap.items()},
        }

    def _gflops(self, spec: ModelSpec, image: np.ndarray) -> float | None:
        """Of one image in float32; a multiplication and its addition are one."""
        detector = Detector(spec)
        try:
            detector([image])  # what is prepared once is not traced
            logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
            with torch.no_grad():
                analysis = FlopCountAnalysis(detector.model, detector.preprocess([image]))
                total = analysis.tracer_warnings("none").total() / 1e9
        except Exception as error:  # tracing fails in as many ways as there are models
            self._note(f"GFLOPs of {spec.label} cannot be counted: {error}")
            return None
        if analysis.unsupported_ops():
            names = ", ".join(sorted(analysis.unsupported_ops()))
            self._note(f"Not in the GFLOPs of {spec.label}: {names}.")
        return total

    def _speed(self, name: str, images: list[np.ndarray], batch_size: int) -> list[dict[str, Any]]:
        """A row for each detector."""
        settings = self.settings
        batches = make_batches(images, batch_size)
        counts = [self._warm_up(detector, batches) for detector, _ in self.detectors]
        # Stages need rounds of their own: on a GPU each waits for the device.
        seconds = interleave(
            [
                lambda i, d=d: elapsed(lambda: d(batches[i % len(batches)]))
                for d, _ in self.detectors
            ],
            settings.repeats,
            f"{name}, batch {batch_size}",
        )
        stages = interleave(
            [
                lambda i, d=d: d.time_stages(batches[i % len(batches)], StageClock())
                for d, _ in self.detectors
            ],
            settings.repeats,
            f"{name}, batch {batch_size}, stages",
        )
        rows = []
        for i, (detector, variant) in enumerate(self.detectors):
            sources = settings.images[name]
            memory = peak_memory(_detect, detector.spec, variant, sources, batch_size)
            rows.append(
                {
                    "model": detector.label,
                    "spec": detector.spec.label,
                    "images": name,
                    "batch_size": batch_size,
                    "detections": counts[i],
                    **summarize(seconds[i], seconds[0]),
                    "stages": median_by_key(stages[i]),
                    "stage_seconds": stages[i],
                    "memory": self._checked(memory, detector.label),
                }
            )
        return rows

    def _warm_up(self, detector: Detector, batches: list[list[np.ndarray]]) -> float:
        """Run all batches once, and return how many detections an image has on average."""
        counts = [len(found) for batch in batches for found in detector(batch)]
        asked = detector.cfg.TEST.DETECTIONS_PER_IMAGE
        if not detector.cfg.MODEL.WEIGHTS and min(counts) != asked:
            self._note(
                f"NOT COMPARABLE: {detector.label} has random weights and returns {min(counts)} to "
                f"{max(counts)} detections, not the {asked} of TEST.DETECTIONS_PER_IMAGE."
            )
        return float(np.mean(counts))

    def _train(self, image_size: tuple[int, int], batch_size: int) -> None:
        specs, repeats = self.settings.specs, self.settings.repeats
        steps = [TrainingStep(spec, image_size, batch_size) for spec in specs]
        calls = [lambda _, step=step: step() for step in steps]
        interleave(calls, 2, "training, warm-up")
        rounds = interleave(calls, repeats, "training")
        seconds = [[sum(parts.values()) for parts in one] for one in rounds]
        for i, spec in enumerate(specs):
            memory = peak_memory(run_steps, spec, image_size, batch_size)
            self.results["training"].append(
                {
                    "model": spec.label,
                    "size": steps[i].size,
                    "batch_size": batch_size,
                    **summarize(seconds[i], seconds[0]),
                    "parts": median_by_key(rounds[i]),
                    "part_seconds": rounds[i],
                    "memory": self._checked(memory, f"training {spec.label}"),
                }
            )

    def _checked(self, memory: dict[str, Any], name: str) -> dict[str, Any]:
        if "failure" in memory:
            self._note(f"Peak memory of {name} is missing: {memory['failure']}")
        return memory

    def _note(self, text: str) -> None:
        if text not in self.results["notes"]:
            self.results["notes"].append(text)


def _detect(spec: ModelSpec, variant: str, sources: list[Source], batch_size: int) -> None:
    """What the timed process does, once."""
    detector = Detector(spec, variant)
    for batch in make_batches(sources, batch_size):
        detector([read(source) for source in batch])


def describe_machine() -> dict[str, Any]:
    """What the times depend on, besides the models."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", "tools.benchmark", *sys.argv[1:]]),
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "detectron2")},
    }
