"""Speed against accuracy, or against arithmetic where there is no accuracy."""

from typing import NamedTuple

from matplotlib.figure import Figure

from .results import Results


class Point(NamedTuple):
    label: str
    x: float
    y: float
    """Pictures a second."""


class Panel(NamedTuple):
    title: str
    x_label: str
    points: list[Point]


def panels(results: Results) -> list[Panel]:
    """One for each kind of pictures and batch size. Models without a value on the x axis are left
    out: with AP, those with random weights."""
    models = {model.label: model for model in results.models}
    if any(model.mask_ap is not None for model in results.models):
        what, x_label = "mask_ap", "mask AP"
    elif any(model.box_ap is not None for model in results.models):
        what, x_label = "box_ap", "box AP"
    else:
        what, x_label = "gflops", "GFLOPs a picture"

    found = {}
    for row in results.speed:
        title = f"{row.pictures}, batch {row.batch_size}"
        panel = found.setdefault(title, Panel(title, x_label, []))
        x: float | None = row.gflops if what == "gflops" else getattr(models[row.label], what)
        if x is not None:
            panel.points.append(Point(row.label, x, row.pictures_per_second))
    return list(found.values())


def plot_speed(results: Results, path: str) -> None:
    """Write a PNG."""
    drawn = panels(results)
    figure = Figure(figsize=(5 * len(drawn), 4), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for ax, panel in zip(axes, drawn):
        for i, point in enumerate(panel.points):
            ax.scatter(point.x, point.y, color=f"C{i}", label=point.label)
        ax.set(title=panel.title, xlabel=panel.x_label, ylabel="pictures / s")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        if panel.points:
            ax.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
