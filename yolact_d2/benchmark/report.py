"""Results as tables: on the screen, in Markdown, in JSON."""

import json
import os
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from .clock import STAGES
from .memory import PeakMemory
from .plot import plot_speed
from .results import Results
from .training import PARTS

MISSING = "-"


def number(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds)


def _memory(memory: PeakMemory, with_gpu: bool) -> dict[str, str]:
    def megabytes(value: int | None) -> str:
        return number(None if value is None else value / 1e6, 0)

    columns = {"peak MB": megabytes(memory.process)}
    if with_gpu:
        columns["GPU peak MB"] = megabytes(memory.gpu)
    return columns


def speed_table(results: Results) -> list[dict[str, Any]]:
    """A row for each model on each kind of pictures, in each batch size."""
    models = {model.label: model for model in results.models}
    with_ap = any(model.box_ap is not None for model in results.models)
    with_gpu = any(row.memory.gpu is not None for row in results.speed)
    table = []
    for row in results.speed:
        columns = {
            "model": row.label,
            "pictures": row.pictures,
            "batch": row.batch_size,
            "median ms": milliseconds(row.latency),
            "p95 ms": milliseconds(row.latency_p95),
            "pictures/s": number(row.pictures_per_second, 2),
            "ratio": number(row.ratio, 2),
            "detections": number(row.detections, 0),
            **_memory(row.memory, with_gpu),
            "GFLOPs": number(row.gflops),
        }
        if with_ap:
            columns["box AP"] = number(models[row.label].box_ap)
            columns["mask AP"] = number(models[row.label].mask_ap)
        table.append(columns)
    return table


def stage_table(results: Results) -> list[dict[str, Any]]:
    """Milliseconds of each stage."""
    return [
        {
            "model": row.label,
            "pictures": row.pictures,
            "batch": row.batch_size,
            **{f"{stage} ms": milliseconds(row.stages.get(stage)) for stage in STAGES},
            "sum/median": number(row.stages_over_latency, 2),
        }
        for row in results.speed
    ]


def model_table(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "model": model.label,
            "weights": model.weights or "random weights",
            "parameters (M)": number(model.parameters / 1e6),
            "load s": number(model.load_seconds, 2),
        }
        for model in results.models
    ]


def training_table(results: Results) -> list[dict[str, Any]]:
    with_gpu = any(row.memory.gpu is not None for row in results.training)
    return [
        {
            "model": row.label,
            "images": f"{row.batch_size} of {row.size[1]}x{row.size[0]}",
            "objects": row.num_objects,
            "median ms": milliseconds(row.iteration),
            "p95 ms": milliseconds(row.iteration_p95),
            "ratio": number(row.ratio, 2),
            **{f"{part} ms": milliseconds(row.parts[part]) for part in PARTS},
            **_memory(row.memory, with_gpu),
        }
        for row in results.training
    ]


def notes(results: Results) -> list[str]:
    """What a reader of the tables must know about this run."""
    found = []
    random = [model.label for model in results.models if not model.weights]
    if random:
        forced = next(row for row in results.speed if row.label == random[0])
        found.append(
            f"Random weights: {'; '.join(random)}. {forced.detections:.0f} detections a picture "
            "were forced on them, the same in all."
        )
    for label, operators in _by_label(results, "not_counted").items():
        found.append(f"Not in the GFLOPs of {label}: {', '.join(sorted(operators))}.")
    for label, failure in _by_label(results, "flops_failure").items():
        found.append(f"GFLOPs of {label} could not be counted: {failure}")
    for row in [*results.speed, *results.training]:
        if row.memory.failure:
            found.append(f"Peak memory of {row.label} is missing: {row.memory.failure}")
    return found


def _by_label(results: Results, field: str) -> dict[str, Any]:
    return {row.label: getattr(row, field) for row in results.speed if getattr(row, field)}


def render(results: Results, style: str) -> str:
    """All tables and notes.

    Args:
        style: of `tabulate`; "github" is Markdown.
    """
    heading = "## {}\n\n" if style == "github" else "{}\n"
    tables = {
        "Speed": speed_table(results),
        "Stages": stage_table(results),
        "Models": model_table(results),
        "Training": training_table(results),
    }
    parts = [heading.format(name) + _tabulate(rows, style) for name, rows in tables.items() if rows]
    if notes(results):
        parts.append("\n".join(f"- {note}" for note in notes(results)))
    facts = [f"- {key}: {value}" for key, value in results.machine.items()]
    parts.append(heading.format("Machine") + "\n".join(facts))
    return "\n\n".join(parts) + "\n"


def _tabulate(rows: Sequence[dict[str, Any]], style: str) -> str:
    text = ("model", "pictures", "weights", "images")
    align = ["left" if key in text else "right" for key in rows[0]]
    return tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True, colalign=align)


def write_report(results: Results, folder: str) -> list[str]:
    """Write benchmark.json, benchmark.md and benchmark.png, and return their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"benchmark.{kind}") for kind in ("json", "md", "png")]
    with open(paths[0], "w") as file:
        json.dump(results.record(), file, indent=1)
    with open(paths[1], "w") as file:
        file.write(render(results, "github"))
    plot_speed(results, paths[2])
    return paths
