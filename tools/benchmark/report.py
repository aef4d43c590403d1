"""Results as Markdown, as JSON and as a plot."""

import json
import os
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from .architectures import STAGES

Row = dict[str, Any]
_AP = ("segm AP", "bbox AP")
_DIGITS = {"ratio": 2, "images/s": 2, "sum/median": 2, "detections": 0, "peak MB": 0}


def _speed(row: Row, model: Row) -> Row:
    return {
        **_milliseconds(row, "median", "p95"),
        "ratio": row["ratio"],
        "images/s": row["batch_size"] / row["median"],
        "detections": row["detections"],
        **_memory(row["memory"]),
        "GFLOPs": row["gflops"],
        **{key: model[key] for key in _AP if key in model},
    }


def _stages(row: Row) -> Row:
    total = sum(row["stages"].values())
    return {**_milliseconds(row["stages"], *STAGES), "sum/median": total / row["median"]}


def _training(row: Row) -> Row:
    return {
        "model": row["model"],
        "images": "{} of {}x{}".format(row["batch_size"], *reversed(row["size"])),
        **_milliseconds(row, "median", "p95"),
        "ratio": row["ratio"],
        **_milliseconds(row["parts"], *row["parts"]),
        **_memory(row["memory"]),
    }


def _milliseconds(seconds: Row, *names: str) -> Row:
    return {f"{name} ms": 1e3 * seconds[name] if name in seconds else None for name in names}


def _memory(memory: Row) -> Row:
    names = {"peak MB": "process", "GPU peak MB": "gpu"}
    return {title: memory[key] / 1e6 for title, key in names.items() if memory.get(key)}


def _model(row: Row) -> Row:
    return {
        "model": row["model"],
        "weights": row["weights"],
        "parameters (M)": row["parameters"] / 1e6 if "parameters" in row else None,
        "config": os.path.basename(row["config_file"]),
    }


def render(results: Row) -> str:
    """Notes and tables in Markdown."""
    models = {model["model"]: model for model in results["models"]}
    speed = results["speed"]
    heads = [{"model": x["model"], "images": x["images"], "batch": x["batch_size"]} for x in speed]
    tables = {
        "Speed": [head | _speed(row, models[row["model"]]) for head, row in zip(heads, speed)],
        "Stages": [head | _stages(row) for head, row in zip(heads, speed)],
        "Training": [_training(row) for row in results["training"]],
        "Models": [_model(row) for row in results["models"]],
    }
    parts = ["\n".join(f"- {note}" for note in results["notes"])] if results["notes"] else []
    parts += [f"## {title}\n\n{_table(rows)}" for title, rows in tables.items() if rows]
    facts = [f"- {key}: {value}" for key, value in results["machine"].items()]
    return "\n\n".join([*parts, "## Machine\n\n" + "\n".join(facts)]) + "\n"


def _table(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return tabulate(
        [[row.get(column) for column in columns] for row in rows],
        headers=columns,
        tablefmt="github",
        floatfmt=[f".{_DIGITS.get(column, 1)}f" for column in columns],
        missingval="-",
    )


def plot_speed(results: Row, path: str) -> None:
    """Images per second against AP if a dataset was given, else against GFLOPs: a panel for each
    set of images and batch size."""
    models = {model["model"]: model for model in results["models"]}
    x_label = next((ap for ap in _AP if any(ap in m for m in models.values())), "GFLOPs")
    panels: dict[str, list[Row]] = {}
    for row in results["speed"]:
        panels.setdefault(f"{row['images']}, batch {row['batch_size']}", []).append(row)
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, rows) in zip(axes, panels.items()):
        for i, row in enumerate(rows):
            x = {"GFLOPs": row["gflops"], **models[row["model"]]}.get(x_label)
            if x is not None:
                y = row["batch_size"] / row["median"]
                ax.scatter(x, y, color=f"C{i}", label=row["model"])
        ax.set(title=title, xlabel=x_label, ylabel="images / s")
        ax.set_xlim(left=0)
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
