"""What was measured, as plain values: they are written to JSON as they are."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .clock import STAGES
from .memory import PeakMemory
from .timing import median, p95, ratio


@dataclass
class ModelResult:
    """What does not depend on pictures and batches."""

    label: str
    config_file: str
    opts: list[str]
    weights: str
    """Empty: random."""
    variant: str
    parameters: int
    load_seconds: float
    has_masks: bool
    box_ap: float | None = None
    """In percent."""
    mask_ap: float | None = None


@dataclass
class SpeedResult:
    """A model on pictures, in batches."""

    label: str
    pictures: str
    batch_size: int
    detections: float
    """The mean of a picture."""
    candidates: list[int] | None
    """Where detections were forced: the least and most that scored above the threshold."""
    latencies: list[float]
    """Seconds of each batch, round by round."""
    reference: list[float]
    """Those of the first model."""
    stage_rounds: list[dict[str, float]]
    """Seconds of each stage, from other rounds than the latencies'."""
    gflops: float | None = None
    """Of the first picture."""
    not_counted: dict[str, int] = field(default_factory=dict)
    """Calls of operators that are not in `gflops`."""
    flops_failure: str = ""
    memory: PeakMemory = PeakMemory()

    @property
    def latency(self) -> float:
        return median(self.latencies)

    @property
    def latency_p95(self) -> float:
        return p95(self.latencies)

    @property
    def pictures_per_second(self) -> float:
        return self.batch_size / self.latency

    @property
    def ratio(self) -> float:
        return ratio(self.latencies, self.reference)

    @property
    def stages(self) -> dict[str, float]:
        """The median of each stage, in order."""
        present = [s for s in STAGES if s in self.stage_rounds[0]]
        return {s: median([one[s] for one in self.stage_rounds]) for s in present}

    @property
    def stages_over_latency(self) -> float:
        """The sum of the stages as a multiple of the latency: what looking at stages costs."""
        return sum(self.stages.values()) / self.latency

    def record(self) -> dict[str, Any]:
        """With what is computed."""
        names = "latency", "latency_p95", "pictures_per_second", "ratio", "stages"
        computed = {name: getattr(self, name) for name in (*names, "stages_over_latency")}
        fields = asdict(self)
        del fields["reference"]
        return {**fields, **computed}


@dataclass
class TrainingResult:
    """A model's training iterations."""

    label: str
    size: list[int]
    """(height, width) of the images."""
    batch_size: int
    num_objects: int
    rounds: list[dict[str, float]]
    """Seconds of each part."""
    reference: list[dict[str, float]]
    """Those of the first model."""
    memory: PeakMemory = PeakMemory()

    @staticmethod
    def _totals(rounds: list[dict[str, float]]) -> list[float]:
        return [sum(parts.values()) for parts in rounds]

    @property
    def iteration(self) -> float:
        return median(self._totals(self.rounds))

    @property
    def iteration_p95(self) -> float:
        return p95(self._totals(self.rounds))

    @property
    def ratio(self) -> float:
        return ratio(self._totals(self.rounds), self._totals(self.reference))

    @property
    def parts(self) -> dict[str, float]:
        return {part: median([one[part] for one in self.rounds]) for part in self.rounds[0]}

    def record(self) -> dict[str, Any]:
        names = "iteration", "iteration_p95", "ratio", "parts"
        fields = asdict(self)
        del fields["reference"]
        return {**fields, **{name: getattr(self, name) for name in names}}


@dataclass
class Results:
    machine: dict[str, Any]
    models: list[ModelResult]
    speed: list[SpeedResult]
    training: list[TrainingResult]

    def record(self) -> dict[str, Any]:
        """Everything, for JSON. Times are in seconds, memory in bytes."""
        return {
            "machine": self.machine,
            "models": [asdict(model) for model in self.models],
            "speed": [row.record() for row in self.speed],
            "training": [row.record() for row in self.training],
        }
