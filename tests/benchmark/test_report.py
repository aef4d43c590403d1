"""Markdown, JSON and plot of made-up results."""

import json

import cv2
import pytest

from tools.benchmark.report import plot_speed, render, write_report

MEMORY = {"process": 1_234_567_890, "before": 4_000_000, "gpu": None}
STAGES = {"preprocess": 0.01, "backbone": 0.1, "heads": 0.05, "nms": 0.02}
SPEED = {"images": "640x427", "batch_size": 2, "detections": 100.0}
SLOW = {"median": 0.6, "p95": 1.0, "ratio": 4.0, "gflops": None, "stages": STAGES}
FAST = {"median": 0.2, "p95": 0.29, "ratio": 1.0, "gflops": 59.47, "memory": MEMORY}
TRAINING = {"size": (550, 640), "batch_size": 2, "parts": {"forward": 0.2, "backward": 0.4}}
MODEL = {"config_file": "a/b.yaml", "weights": "random", "parameters": 34_560_000}


def make_results(**ap):
    return {
        "notes": ["a note"],
        "models": [{"model": "fast", **MODEL, **ap}, {"model": "slow", **MODEL}],
        "speed": [
            {"model": "fast", **SPEED, **FAST, "stages": {**STAGES, "masks": 0.02}},
            {"model": "slow", **SPEED, **SLOW, "memory": {"failure": "killed"}},
        ],
        "training": [{"model": "fast", **FAST, **TRAINING}],
        "machine": {"cpu": "some CPU", "threads": 2},
    }


def cells(markdown, heading):
    """The rows of a table, as lists."""
    lines = markdown.split(f"## {heading}\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables():
    text = render(make_results(**{"bbox AP": 40.04, "segm AP": 31.26}))
    head, _, fast, slow = cells(text, "Speed")
    assert head[3:8] == ["median ms", "p95 ms", "ratio", "images/s", "detections"]
    assert fast[:8] == ["fast", "640x427", "2", "200.0", "290.0", "1.00", "10.00", "100"]
    assert head[8:] == ["peak MB", "GFLOPs", "segm AP", "bbox AP"]
    assert fast[8:] == ["1235", "59.5", "31.3", "40.0"] and slow[8:] == ["-"] * 4
    _, _, fast, slow = cells(text, "Stages")
    assert fast[3:] == ["10.0", "100.0", "50.0", "20.0", "20.0", "1.00"]
    assert slow[3:] == ["10.0", "100.0", "50.0", "20.0", "-", "0.30"]
    assert cells(text, "Training")[2][1:] == [
        "2 of 640x550", "200.0", "290.0", "1.00", "200.0", "400.0", "1235"
    ]  # fmt: skip
    assert cells(text, "Models")[2] == ["fast", "random", "34.6", "b.yaml"]
    assert "- a note" in text and "- threads: 2" in text


def test_files(tmp_path):
    results, folder = make_results(), tmp_path / "new"
    write_report(results, str(folder))
    record = json.loads((folder / "benchmark.json").read_text())
    assert record == json.loads(json.dumps(results))
    assert (folder / "benchmark.md").read_text() == render(results)
    assert cv2.imread(str(folder / "benchmark.png")).std() > 0


def test_plot_against_ap_or_gflops(monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda f, *_, **__: figures.append(f))
    for ap, x_label, x in [
        ({}, "GFLOPs", 59.47),
        ({"bbox AP": 40.0}, "bbox AP", 40.0),
        ({"bbox AP": 40.0, "segm AP": 31.0}, "segm AP", 31.0),
    ]:
        plot_speed(make_results(**ap), "")
        (ax,) = figures[-1].axes
        assert ax.get_xlabel() == x_label and ax.get_title() == "640x427, batch 2"
        (points,) = ax.collections  # the slow model has no value on the x axis
        assert points.get_offsets().tolist() == [[x, pytest.approx(10)]]
