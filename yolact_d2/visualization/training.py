"""Curves of training runs, from the metrics.json that Detectron2 writes."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.file_io import PathManager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

_COLUMNS = 3
_SMOOTHED_OVER = 30  # points of a curve in a window are this part of all


class Curve(NamedTuple):
    iterations: np.ndarray
    """(P,) in ascending order."""
    values: np.ndarray
    """(P,)"""


class Run(NamedTuple):
    """What a run recorded."""

    curves: dict[str, Curve]
    """By name, such as "loss_mask" or "segm/AP"."""
    num_unreadable: int
    """Lines that are not JSON: the last one of a run that was killed."""


def read_run(path: str) -> Run:
    """Read the metrics of a run.

    A run that was resumed from a checkpoint repeats the iterations after it. What was recorded of
    them before is left out, because it did not lead to the model.

    Args:
        path: the output folder, or the file in it.

    Raises:
        ValueError: naming the file, if nothing in it can be read.
        OSError: if it cannot be opened.
    """
    if PathManager.isdir(path):
        path = os.path.join(path, "metrics.json")
    records, num_unreadable = [], 0
    with PathManager.open(path, "r", errors="replace") as file:
        for line in file:
            record = read_line(line)
            if record is None:
                num_unreadable += bool(line.strip())
                continue
            while records and records[-1]["iteration"] > record["iteration"]:
                records.pop()
            if records and records[-1]["iteration"] == record["iteration"]:
                records[-1].update(record)
            else:
                records.append(record)
    if not records:
        raise ValueError(f"{path} has no line of metrics, such as Detectron2 writes")
    names = sorted({name for record in records for name in record} - {"iteration"})
    return Run({name: _curve(records, name) for name in names}, num_unreadable)


def read_line(line: str) -> dict[str, Any] | None:
    """The metrics of a line; None if it is cut off.

    When a killed run is resumed, the new line goes on where the old one ends.
    """
    try:
        record = json.loads(line[max(line.rfind("{"), 0) :])
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get("iteration"), int)
    return record if is_record else None


def _curve(records: Sequence[dict[str, Any]], name: str) -> Curve:
    points = [(r["iteration"], r[name]) for r in records if isinstance(r.get(name), (int, float))]
    points = np.array(points, dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]  # AP is NaN where there is no object
    return Curve(points[:, 0], points[:, 1])


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """(P,) means over windows around each value, which are narrower at the ends."""
    sums = np.concatenate([[0.0], values.cumsum()])
    centers = np.arange(len(values))
    first = (centers - window // 2).clip(min=0)
    last = (centers + window // 2 + 1).clip(max=len(values))
    return (sums[last] - sums[first]) / (last - first)


def shown_metrics(runs: Sequence[Run]) -> list[str]:
    """Names of the losses, the total first, the APs and the learning rate of runs."""
    names = sorted(
        {name for run in runs for name, curve in run.curves.items() if len(curve.values)}
    )
    losses = [name for name in names if name.startswith("loss")]
    aps = [name for name in reversed(names) if is_ap(name)]
    total, rate = ([name] if name in names else [] for name in ("total_loss", "lr"))
    return total + losses + aps + rate


def is_ap(name: str) -> bool:
    """Whether this is the AP of a task: "segm/AP", or with the dataset before it."""
    return name.split("/")[-1] == "AP"


def training_figure(runs: dict[str, Run]) -> Figure:
    """A panel for each metric, with a curve of each run: losses, learning rate, AP.

    Args:
        runs: by the names that the legend shall have.

    Raises:
        ValueError: if none of them has anything to show.
    """
    names = shown_metrics(list(runs.values()))
    if not names:
        raise ValueError("the runs recorded neither losses nor learning rate nor AP")
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    last = max(
        run.curves[name].iterations.max(initial=0)
        for run in runs.values()
        for name in names
        if name in run.curves
    )
    for axis, name in zip(axes, names):
        for i, run in enumerate(runs.values()):
            if name in run.curves:
                _draw_curve(axis, name, run.curves[name], f"C{i}")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("iteration", fontsize=8)
        axis.set_xlim(0, 1.03 * max(last, 1))
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    handles = [axes[0].plot([], [], color=f"C{i}", label=run)[0] for i, run in enumerate(runs)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(runs), frameon=False)
    return figure


def _draw_curve(axis: Axes, name: str, curve: Curve, color: str) -> None:
    if is_ap(name):
        axis.plot(*curve, color=color, marker="o", markersize=4)
        axis.set_ylim(bottom=0)
    elif name == "lr":
        axis.plot(*curve, color=color)
    else:
        window = len(curve.values) // _SMOOTHED_OVER
        axis.plot(*curve, color=color, alpha=0.3, linewidth=0.8)
        axis.plot(curve.iterations, moving_average(curve.values, window), color=color)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
