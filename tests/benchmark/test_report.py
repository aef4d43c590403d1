"""Tables, notes, JSON and the plot of results that were made up."""

import json

import cv2
import pytest

from yolact_d2.benchmark.memory import PeakMemory
from yolact_d2.benchmark.plot import panels
from yolact_d2.benchmark.report import render, speed_table, stage_table, write_report
from yolact_d2.benchmark.results import ModelResult, Results, SpeedResult, TrainingResult

LATENCIES = {"fast": [0.1, 0.3, 0.2], "slow": [0.4, 0.6, 1.0]}


def model(label, **changes):
    fields = dict(
        label=label,
        config_file=f"{label}.yaml",
        opts=["INPUT.MIN_SIZE_TEST", "550"],
        weights="",
        variant="float32",
        parameters=34_560_000,
        load_seconds=1.234,
        has_masks=label == "fast",
    )
    return ModelResult(**{**fields, **changes})


def speed(label, batch_size=1, **changes):
    stages = {"preprocess": 0.01, "backbone": 0.1, "heads": 0.05, "nms": 0.02}
    if label == "fast":
        stages["masks"] = 0.02
    fields = dict(
        label=label,
        pictures="640x427",
        batch_size=batch_size,
        detections=100.0,
        candidates=[550, 600],
        latencies=LATENCIES[label],
        reference=LATENCIES["fast"],
        stage_rounds=[stages, {k: 3 * v for k, v in stages.items()}, stages],
        gflops={"fast": 59.5, "slow": 245.6}[label],
        memory=PeakMemory(process=1_234_567_890, before=400_000_000),
    )
    return SpeedResult(**{**fields, **changes})


def results(models=(), rows=(), training=()):
    return Results(
        {"cpu": "some CPU", "threads": 2},
        list(models) or [model("fast"), model("slow")],
        list(rows) or [speed("fast"), speed("slow")],
        list(training),
    )


def cells(markdown, heading):
    """The rows of a table, as dicts."""
    lines = markdown.split(f"## {heading}\n\n")[1].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row)) for row in rows]


def test_speed_in_markdown():
    fast, slow = cells(render(results(), "github"), "Speed")
    assert fast == {
        "model": "fast", "pictures": "640x427", "batch": "1", "median ms": "200.0",
        "p95 ms": "290.0", "pictures/s": "5.00", "ratio": "1.00", "detections": "100",
        "peak MB": "1235", "GFLOPs": "59.5",
    }  # fmt: skip
    # 4, 2 and 5 times as long.
    assert slow["ratio"] == "4.00" and slow["median ms"] == "600.0"


def test_throughput_counts_pictures():
    row = speed_table(results(rows=[speed("fast", batch_size=8)]))[0]
    assert row["pictures/s"] == "40.00"


def test_stages_in_markdown():
    fast, slow = cells(render(results(), "github"), "Stages")
    assert [fast[f"{s} ms"] for s in ("preprocess", "backbone", "heads", "nms", "masks")] == [
        "10.0", "100.0", "50.0", "20.0", "20.0",
    ]  # fmt: skip
    assert fast["sum/median"] == "1.00" and slow["sum/median"] == "0.30"
    assert slow["masks ms"] == "-"
    assert stage_table(results())[1]["nms ms"] == "20.0"


def test_models_and_notes():
    text = render(results(), "github")
    fast = cells(text, "Models")[0]
    assert fast == {
        "model": "fast", "weights": "random weights", "parameters (M)": "34.6", "load s": "1.23"
    }  # fmt: skip
    assert "Random weights: fast; slow. 100 detections a picture were forced" in text
    assert "- cpu: some CPU" in text and "- threads: 2" in text


def test_ap_is_in_the_speed_table():
    models = [model("fast", weights="a.pth", box_ap=40.04, mask_ap=31.26), model("slow")]
    fast, slow = cells(render(results(models), "github"), "Speed")
    assert (fast["box AP"], fast["mask AP"]) == ("40.0", "31.3")
    assert (slow["box AP"], slow["mask AP"]) == ("-", "-")
    assert "Random weights: slow." in render(results(models), "github")


def test_what_is_missing_is_said():
    rows = [
        speed("fast", not_counted={"torchvision::roi_align": 8, "aten::topk": 1}),
        speed("slow", gflops=None, flops_failure="no trace", memory=PeakMemory(failure="killed")),
    ]
    text = render(results(rows=rows), "github")
    assert "Not in the GFLOPs of fast: aten::topk, torchvision::roi_align." in text
    assert "GFLOPs of slow could not be counted: no trace" in text
    assert "Peak memory of slow is missing: killed" in text
    slow = cells(text, "Speed")[1]
    assert slow["GFLOPs"] == "-" and slow["peak MB"] == "-"


def test_memory_of_a_gpu():
    rows = [speed("fast", memory=PeakMemory(process=10**9, gpu=2_500_000)), speed("slow")]
    fast, slow = cells(render(results(rows=rows), "github"), "Speed")
    assert fast["GPU peak MB"] == "2" and slow["GPU peak MB"] == "-"


def test_training():
    parts = [{"forward": 0.1 * i, "backward": 0.2 * i, "step": 0.01} for i in (1, 2, 3)]
    double = [{key: 2 * value for key, value in one.items()} for one in parts]
    rows = [
        TrainingResult(label, [550, 640], 2, 10, rounds, parts)
        for label, rounds in (("fast", parts), ("slow", double))
    ]
    fast, slow = cells(render(results(training=rows), "github"), "Training")
    assert fast == {
        "model": "fast", "images": "2 of 640x550", "objects": "10", "median ms": "610.0",
        "p95 ms": "880.0", "ratio": "1.00", "forward ms": "200.0", "backward ms": "400.0",
        "step ms": "10.0", "peak MB": "-",
    }  # fmt: skip
    assert slow["ratio"] == "2.00"
    assert "## Training" not in render(results(), "github")


def test_files(tmp_path):
    rows = [speed("fast"), speed("slow"), speed("fast", batch_size=8)]
    paths = write_report(results(rows=rows), str(tmp_path / "new"))
    assert [p.rsplit(".")[-1] for p in paths] == ["json", "md", "png"]
    record = json.loads(open(paths[0]).read())
    slow = record["speed"][1]
    assert slow["latency"] == pytest.approx(0.6) and slow["ratio"] == pytest.approx(4)
    assert slow["latencies"] == LATENCIES["slow"]
    assert slow["stages"]["backbone"] == pytest.approx(0.1)
    assert slow["memory"]["before"] == 400_000_000
    assert record["speed"][2]["pictures_per_second"] == pytest.approx(40)
    assert record["models"][0]["parameters"] == 34_560_000
    assert record["machine"]["threads"] == 2 and record["training"] == []
    assert open(paths[1]).read() == render(results(rows=rows), "github")
    assert cv2.imread(paths[2]).std() > 0


def test_plot_against_gflops_without_ap():
    rows = [speed("fast"), speed("slow"), speed("fast", batch_size=8)]
    one, eight = panels(results(rows=rows))
    assert one.x_label.startswith("GFLOPs")
    assert [p.x for p in one.points] == [59.5, 245.6]
    assert [p.y for p in one.points] == pytest.approx([5, 1 / 0.6])
    assert eight.title == "640x427, batch 8" and eight.points[0].y == pytest.approx(40)


def test_plot_against_ap():
    models = [model("fast", box_ap=40.0, mask_ap=31.0), model("slow")]
    (panel,) = panels(results(models))
    assert panel.x_label == "mask AP"
    assert [(p.label, p.x) for p in panel.points] == [("fast", 31.0)]
    (panel,) = panels(results([model("fast", box_ap=40.0), model("slow", box_ap=20.0)]))
    assert panel.x_label == "box AP" and [p.x for p in panel.points] == [40.0, 20.0]
