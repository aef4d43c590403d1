"""Results as tables, on the screen and in Markdown, as JSON and as a plot."""

import json
import os
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from .architectures import STAGES

Row = dict[str, Any]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _milliseconds(parts: Row, *names: str) -> dict[str, str]:
    return {f"{n} ms": _number(1e3 * parts[n] if n in parts else None) for n in names}


def _megabytes(rows: list[Row], memory: Row) -> dict[str, str]:
    keys = {"peak MB": "process"}
    if any(row["memory"].get("gpu") for row in rows):
        keys["GPU peak MB"] = "gpu"
    found = {title: memory.get(key) for title, key in keys.items()}
    return {title: _number(x and x / 1e6, 0) for title, x in found.items()}


def speed_table(results: Row) -> list[Row]:
    models = {model["model"]: model for model in results["models"]}
    columns = [c for c in ("bbox AP", "segm AP") if any(c in m for m in models.values())]
    return [
        {
            "model": row["model"],
            "images": row["images"],
            "batch": row["batch_size"],
            **_milliseconds(row, "median", "p95"),
            "ratio": _number(row["ratio"], 2),
            "images/s": _number(row["batch_size"] / row["median"], 2),
            "detections": _number(row["detections"], 0),
            **_megabytes(results["speed"], row["memory"]),
            "GFLOPs": _number(row["gflops"]),
            **{column: _number(models[row["model"]].get(column)) for column in columns},
        }
        for row in results["speed"]
    ]


def stage_table(results: Row) -> list[Row]:
    return [
        {
            "model": row["model"],
            "images": row["images"],
            "batch": row["batch_size"],
            **_milliseconds(row["stages"], *STAGES),
            "sum/median": _number(sum(row["stages"].values()) / row["median"], 2),
        }
        for row in results["speed"]
    ]


def model_table(results: Row) -> list[Row]:
    return [
        {
            "model": row["model"],
            "weights": row["weights"],
            "parameters (M)": _number(row["parameters"] / 1e6),
            "opts": " ".join(row["opts"]),
        }
        for row in results["models"]
    ]


def training_table(results: Row) -> list[Row]:
    return [
        {
            "model": row["model"],
            "images": "{} of {}x{}".format(row["batch_size"], *reversed(row["size"])),
            **_milliseconds(row, "median", "p95"),
            "ratio": _number(row["ratio"], 2),
            **_milliseconds(row["parts"], *row["parts"]),
            **_megabytes(results["training"], row["memory"]),
        }
        for row in results["training"]
    ]


def render(results: Row) -> str:
    """All tables and notes in Markdown."""
    parts = ["\n".join(f"- {note}" for note in results["notes"])] if results["notes"] else []
    tables = {
        "Speed": speed_table(results),
        "Stages": stage_table(results),
        "Training": training_table(results),
        "Models": model_table(results),
    }
    for name, rows in tables.items():
        if rows:
            text = ("model", "images", "weights", "opts")
            align = ["left" if key in text else "right" for key in rows[0]]
            table = tabulate(
                rows, headers="keys", tablefmt="github", disable_numparse=True, colalign=align
            )
            parts.append(f"## {name}\n\n{table}")
    facts = [f"- {key}: {value}" for key, value in results["machine"].items()]
    return "\n\n".join([*parts, "## Machine\n\n" + "\n".join(facts)]) + "\n"


def plot_speed(results: Row, path: str) -> None:
    """Images per second against AP if a dataset was given, else against GFLOPs; a panel for each
    set of images and batch size."""
    models = {model["model"]: model for model in results["models"]}
    kinds = ("segm AP", "bbox AP")
    x_label = next((k for k in kinds if any(k in m for m in models.values())), "GFLOPs")
    panels: dict[str, list[Row]] = {}
    for row in results["speed"]:
        panels.setdefault(f"{row['images']}, batch {row['batch_size']}", []).append(row)
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, rows) in zip(axes, panels.items()):
        for row in rows:
            x = row["gflops"] if x_label == "GFLOPs" else models[row["model"]].get(x_label)
            if x is not None:
                ax.scatter(x, row["batch_size"] / row["median"], label=row["model"])
        ax.set(title=title, xlabel=x_label, ylabel="images / s")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def write_report(results: Row, folder: str) -> None:
    """Write benchmark.json, benchmark.md and benchmark.png."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "benchmark.json"), "w") as file:
        json.dump(results, file, indent=1)
    with open(os.path.join(folder, "benchmark.md"), "w") as file:
        file.write(render(results))
    plot_speed(results, os.path.join(folder, "benchmark.png"))
