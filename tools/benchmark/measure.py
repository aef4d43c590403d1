"""All measurements of all models, one after the other."""

import datetime
import logging
import math
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count

from yolact_d2.data import build_test_loader
from yolact_d2.evaluation import build_evaluator

from .exported import ExportedDetector
from .images import Source, make_batches, read
from .memory import peak_memory
from .models import Detector, ModelSpec
from .timing import interleave, median_by_key, summarize
from .training import TrainingStep, run_steps
from .variants import is_available


@dataclass
class Benchmark:
    """Measures models. Ratios refer to the first."""

    specs: Sequence[ModelSpec]
    images: dict[str, list[Source]]
    """Sets of images by name."""
    variants: Sequence[str] = ("float32",)
    batch_sizes: Sequence[int] = (1,)
    repeats: int = 20
    """Timed rounds."""
    dataset: str | None = None
    """A registered dataset, for the AP of the models with weights."""
    exported: Sequence[Callable[[], ExportedDetector]] = ()
    """Files beside the models; only their speed is measured."""
    train_batch_size: int | None = None
    """None: training steps are not measured."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the results must know."""

    def run(self) -> dict[str, Any]:
        """
        Returns:
            "notes", "models", "speed", "training" and "machine", plain values for JSON. Times are
            in seconds, memory in bytes, AP in percent.
        """
        detectors: list[Any] = [
            Detector(spec, variant)
            for spec in self.specs
            for variant in self.variants
            if is_available(variant, spec.load_cfg().MODEL.META_ARCHITECTURE)
        ]
        models = [self._describe(detector) for detector in detectors]
        files = [factory() for factory in self.exported]
        models += [file.describe() for file in files]
        detectors += files
        speed = [row for name in self.images for row in self._speed(detectors, name)]
        del detectors  # training needs their memory
        training = list(self._training(self.train_batch_size)) if self.train_batch_size else []
        return {
            "notes": self.notes,
            "models": models,
            "speed": speed,
            "training": training,
            "machine": describe_machine(),
        }

    def _describe(self, detector: Detector) -> dict[str, Any]:
        """What does not depend on the images."""
        cfg, dataset = detector.cfg, self.dataset
        row = {
            "model": detector.label,
            "config_file": detector.spec.config_file,
            "opts": list(detector.spec.opts),
            "variant": detector.variant,
            "weights": cfg.MODEL.WEIGHTS or "random",
            "parameters": parameter_count(detector.model)[""],
        }
        if dataset and cfg.MODEL.WEIGHTS:
            with tempfile.TemporaryDirectory() as folder:
                evaluator = build_evaluator(cfg, dataset, folder)
                loader = build_test_loader(cfg, dataset)
                found = inference_on_dataset(detector.model, loader, evaluator)
            for task, values in found.items():
                ap = values.get("AP", math.nan)
                row[f"{task} AP"] = None if math.isnan(ap) else ap
        return row

    def _speed(
        self, detectors: Sequence[Detector | ExportedDetector], name: str
    ) -> Iterator[dict[str, Any]]:
        """A row for each batch size and detector, on one set of images."""
        images = [read(source) for source in self.images[name]]
        gflops = {spec: self._gflops(spec, images[0]) for spec in self.specs}
        for size in self.batch_sizes:
            batches, title = make_batches(images, size), f"{name}, batch {size}"
            counts = [self._warm_up(detector, batches) for detector in detectors]
            seconds = interleave([d.time for d in detectors], batches, self.repeats, title)
            # In rounds of their own: on a GPU each stage waits for the device.
            stages = interleave([d.time_stages for d in detectors], batches, self.repeats, title)
            for i, d in enumerate(detectors):
                memory = peak_memory(_detect, d.factory, self.images[name], size)
                yield {
                    "model": d.label,
                    "images": name,
                    "batch_size": size,
                    "detections": counts[i],
                    **summarize(seconds[i], seconds[0]),
                    "stages": median_by_key(stages[i]),
                    "stage_seconds": stages[i],
                    "gflops": gflops.get(d.spec),
                    "memory": self._checked(memory, d.label),
                }

    def _warm_up(
        self, detector: Detector | ExportedDetector, batches: list[list[np.ndarray]]
    ) -> float:
        """Run all batches once, and return how many detections an image has on average."""
        counts = [count for batch in batches for count in detector.count(batch)]
        if isinstance(detector, ExportedDetector):
            return float(np.mean(counts))
        asked = detector.cfg.TEST.DETECTIONS_PER_IMAGE
        if not detector.cfg.MODEL.WEIGHTS and min(counts) < asked:
            self._note(
                f"NOT COMPARABLE: {detector.label} has random weights and returns {min(counts)} to "
                f"{max(counts)} detections, not the {asked} of TEST.DETECTIONS_PER_IMAGE."
            )
        return float(np.mean(counts))

    def _gflops(self, spec: ModelSpec, image: np.ndarray) -> float | None:
        """Of one image in float32; a multiplication and its addition are one."""
        detector = Detector(spec)
        detector([image])  # what is prepared once is not traced
        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        try:
            with torch.no_grad():
                analysis = FlopCountAnalysis(detector.model, detector.preprocess([image]))
                flops = analysis.tracer_warnings("none").total()
        except Exception as error:  # tracing fails in as many ways as there are models
            self._note(f"GFLOPs of {spec.label} cannot be counted: {error}")
            return None
        if analysis.unsupported_ops():
            names = ", ".join(sorted(analysis.unsupported_ops()))
            self._note(f"Not in the GFLOPs of {spec.label}: {names}.")
        return flops / 1e9

    def _training(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """A row for each model."""
        image_size = read(next(iter(self.images.values()))[0]).shape[:2]
        steps = [TrainingStep(spec, image_size, batch_size) for spec in self.specs]
        interleave(steps, [None], 2, "training, warm-up")
        parts = interleave(steps, [None], self.repeats, "training")
        seconds = [[sum(one.values()) for one in rounds] for rounds in parts]
        for i, spec in enumerate(self.specs):
            memory = peak_memory(run_steps, spec, image_size, batch_size)
            yield {
                "model": spec.label,
                "size": steps[i].size,
                "batch_size": batch_size,
                **summarize(seconds[i], seconds[0]),
                "parts": median_by_key(parts[i]),
                "part_seconds": parts[i],
                "memory": self._checked(memory, f"training {spec.label}"),
            }

    def _checked(self, memory: dict[str, Any], name: str) -> dict[str, Any]:
        if "failure" in memory:
            self._note(f"Peak memory of {name} is missing: {memory['failure']}")
        return memory

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _detect(
    factory: Callable[[], Detector | ExportedDetector], sources: list[Source], batch_size: int
) -> None:
    """What the timed process does, once, with the images of one batch in memory."""
    detector = factory()
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
