"""A whole benchmark: all models, pictures and batch sizes in one process."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from tqdm import tqdm

from .accuracy import check_dataset, measure_ap
from .clock import device_clock
from .flops import count_flops
from .machine import describe_machine
from .memory import Request, measure_peak_memory
from .pictures import PictureSet, batch_indices, distinct_batches
from .results import ModelResult, Results, SpeedResult, TrainingResult
from .runner import Runner
from .specs import ModelSpec
from .timing import seconds, take_turns
from .training import TrainingSettings, TrainingStep
from .variants import suits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    specs: Sequence[ModelSpec]
    pictures: Sequence[PictureSet]
    variants: Sequence[str] = ("float32",)
    batch_sizes: Sequence[int] = (1,)
    repeats: int = 20
    """Rounds that are timed, and as many again in which stages are."""
    num_detections: int = 100
    """Of each picture, where weights are random."""
    dataset: str | None = None
    """Its AP is measured for models with weights."""
    training: TrainingSettings | None = None

    def check(self) -> None:
        """
        Raises:
            ValueError: if the dataset does not suit the models.
        """
        if self.dataset is None:
            return
        with_weights = [spec for spec in self.specs if not spec.random]
        if not with_weights:
            raise ValueError(f"AP on {self.dataset!r} needs weights, and all models are random")
        for spec in with_weights:
            check_dataset(self.dataset, spec)


@dataclass
class Suite:
    """Runs what the settings ask for. Building it loads the models."""

    settings: Settings
    runners: list[Runner] = field(init=False)

    def __post_init__(self):
        """
        Raises:
            ValueError: if weights do not fit a model, detections cannot be forced on it, or no
                model has the variants.
        """
        self.settings.check()
        self.runners = [
            Runner(spec, variant, self.settings.num_detections)
            for spec in self.settings.specs
            for variant in self.settings.variants
            if suits(variant, spec.load().MODEL.META_ARCHITECTURE)
        ]
        if not self.runners:
            raise ValueError(f"none of the models has a variant {self.settings.variants}")
        for runner in self.runners:
            for pictures in self.settings.pictures:
                runner.calibrate([pictures.picture(0)])

    def run(self) -> Results:
        s = self.settings
        machine = describe_machine(self.runners[0].device)
        flops = {pictures.name: self._flops(pictures) for pictures in s.pictures}
        models = [self._model(runner) for runner in self.runners]
        speed = [
            row
            for pictures in s.pictures
            for size in s.batch_sizes
            for row in self._speed(pictures, size, flops[pictures.name])
        ]
        self.runners = []  # their memory is needed
        training = self._training() if s.training else []
        return Results(machine, models, speed, training)

    def _model(self, runner: Runner) -> ModelResult:
        spec = runner.spec
        ap = {}
        if self.settings.dataset and not spec.random:
            ap = measure_ap(runner, self.settings.dataset)
        return ModelResult(
            label=runner.label,
            config_file=spec.config_file,
            opts=list(spec.opts),
            weights=spec.weights,
            variant=runner.variant,
            parameters=runner.num_parameters,
            load_seconds=runner.load_seconds,
            has_masks=runner.anatomy.has_masks,
            box_ap=ap.get("bbox"),
            mask_ap=ap.get("segm"),
        )

    def _flops(self, pictures: PictureSet) -> dict[str, dict]:
        """Fields of :class:`SpeedResult` for the first picture, by the label of the spec."""
        found = {}
        picture = pictures.picture(0)
        for spec in tqdm(self.settings.specs, f"GFLOPs, {pictures.name}", leave=False):
            runner = Runner(spec, num_detections=self.settings.num_detections)
            runner.calibrate([picture])
            try:
                flops = count_flops(runner, picture)
            except Exception as error:  # tracing fails in as many ways as there are models
                logger.warning(f"GFLOPs of {spec.label} cannot be counted: {error}")
                found[spec.label] = {"flops_failure": str(error)}
            else:
                found[spec.label] = {"gflops": flops.gflops, "not_counted": flops.unsupported}
        return found

    def _speed(
        self, pictures: PictureSet, batch_size: int, flops: dict[str, dict]
    ) -> list[SpeedResult]:
        s = self.settings
        images = [pictures.picture(i) for i in range(len(pictures))]
        warm_up = [[images[i] for i in b] for b in distinct_batches(len(images), batch_size)]
        calls = len(self.runners) * (2 * s.repeats + len(warm_up) + 1)
        with tqdm(total=calls, desc=f"{pictures.name}, batch {batch_size}") as progress:
            found = []
            for runner in self.runners:
                runner.calibrate(images)
                counts = []
                for batch in warm_up:
                    counts += [len(instances) for instances in runner(batch)]
                    progress.update()
                found.append(float(np.mean(counts)))
            latencies, stages = self._rounds(images, batch_size, progress)

            rows = []
            for i, runner in enumerate(self.runners):
                request = Request(
                    runner.spec, runner.variant, pictures, batch_size, s.num_detections
                )
                rows.append(
                    SpeedResult(
                        label=runner.label,
                        pictures=pictures.name,
                        batch_size=batch_size,
                        detections=found[i],
                        candidates=list(runner.forcing.arrived) if runner.forcing else None,
                        latencies=latencies[i],
                        reference=latencies[0],
                        stage_rounds=stages[i],
                        memory=measure_peak_memory(request),
                        **flops[runner.spec.label],
                    )
                )
                progress.update()
        return rows

    def _rounds(self, images: list[np.ndarray], batch_size: int, progress: tqdm):
        """Latencies, and then stages, of each model."""

        def latency(runner, now, turn):
            batch = [images[i] for i in batch_indices(len(images), batch_size, turn)]
            return seconds(lambda: runner(batch), now)

        def stages(runner, now, turn):
            batch = [images[i] for i in batch_indices(len(images), batch_size, turn)]
            return runner.stages(batch, now)

        clocks = [device_clock(runner.device) for runner in self.runners]
        return [
            take_turns(
                [partial(what, runner, now) for runner, now in zip(self.runners, clocks)],
                self.settings.repeats,
                progress.update,
            )
            for what in (latency, stages)
        ]

    def _training(self) -> list[TrainingResult]:
        s = self.settings
        size = s.pictures[0].first_size()
        steps = [TrainingStep(spec, size, s.training) for spec in s.specs]
        with tqdm(total=len(steps) * (s.repeats + 3), desc="training") as progress:
            # In the first iteration memory is found, in the second the optimizer's state is there.
            take_turns([lambda _, step=step: step() for step in steps], 2, progress.update)
            rounds = take_turns(
                [lambda _, step=step: step() for step in steps], s.repeats, progress.update
            )
            rows = []
            for spec, step, parts in zip(s.specs, steps, rounds):
                request = Request(spec, "float32", s.pictures[0], 1, s.num_detections, s.training)
                rows.append(
                    TrainingResult(
                        label=spec.label,
                        size=list(step.size),
                        batch_size=s.training.batch_size,
                        num_objects=s.training.num_objects,
                        rounds=parts,
                        reference=rounds[0],
                        memory=measure_peak_memory(request),
                    )
                )
                progress.update()
        return rows
