"""tools/benchmark.py and tools/benchmark_ops.py, run as a user runs them."""

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from plain import CONFIGS
from small_models import MASK_RCNN, RETINANET, YOLACT

from yolact_d2.data.shapes import generate_shapes

TOOLS = CONFIGS.parent / "tools"
SHAPES = str(CONFIGS / "yolact_shapes.yaml")


def run(program, *args, **env):
    return subprocess.run(
        [sys.executable, str(TOOLS / program), *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )


def benchmark(*args, **env):
    return run("benchmark.py", "--device", "cpu", *args, **env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of everything but AP."""
    folder = tmp_path_factory.mktemp("benchmark")
    done = benchmark(
        *("--config-file", YOLACT, MASK_RCNN),
        *("--sizes", "90x60", "--num-images", 2, "--batch-sizes", 2),
        *("--repeats", 2, "--num-detections", 6),
        *("--train", "--train-objects", 3, "--output", folder),
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "benchmark.json").read_text())


LABELS = ["yolact_shapes IMAGE_SIZE=96", "mask_rcnn"]


def test_rows(record):
    rows = [(row["label"], row["pictures"], row["batch_size"]) for row in record["speed"]]
    assert rows == [(label, "90x60", 2) for label in LABELS]
    for row in record["speed"]:
        assert row["detections"] == 6
        assert len(row["latencies"]) == 2 and min(row["latencies"]) > 0
        assert list(row["stages"]) == ["preprocess", "backbone", "heads", "nms", "masks"]
        assert row["gflops"] > 0.01 and not row["flops_failure"]
    assert [row["ratio"] == 1 for row in record["speed"]] == [True, False]


def test_models(record, shapes_cfg):
    assert [model["label"] for model in record["models"]] == LABELS
    parameters = sum(p.numel() for p in build_model(shapes_cfg).parameters())
    assert record["models"][0]["parameters"] == parameters
    assert all(model["load_seconds"] > 0 for model in record["models"])


def test_peak_memory_comes_from_other_processes(record):
    rows = record["speed"] + record["training"]
    assert len(rows) == 4
    for row in rows:
        memory = row["memory"]
        assert not memory["failure"]
        assert 100e6 < memory["before"] < memory["process"]


def test_training(record):
    assert [row["size"] for row in record["training"]] == [[96, 96], [96, 144]]
    for row in record["training"]:
        assert row["num_objects"] == 3 and len(row["rounds"]) == 2
        assert list(row["parts"]) == ["forward", "backward", "step"]


def test_machine(record):
    machine = record["machine"]
    assert machine["threads"] == 1 and machine["device"] == "cpu"
    assert machine["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"date", "cpu", "torchvision", "detectron2", "command"} <= set(machine)


def test_screen_and_files(folder):
    shown = (folder / "stdout").read_text()
    for word in ("Speed", "Stages", "Training", "random weights", *LABELS, "benchmark.png"):
        assert word in shown
    assert "90x60, batch 2: 100%" in (folder / "stderr").read_text()
    assert "## Speed" in (folder / "benchmark.md").read_text()
    assert (folder / "benchmark.png").stat().st_size > 1000


def test_ap_and_variants(tmp_path, shapes_cfg):
    generate_shapes(str(tmp_path / "shapes"), num_train=1, num_val=3)
    weights = tmp_path / "model.pth"
    torch.save({"model": build_model(shapes_cfg).state_dict()}, weights)
    done = benchmark(
        *("--config-file", SHAPES, RETINANET, "--weights", weights, "random"),
        *("--dataset", "shapes_val", "--variants", "amp"),
        *("--input", tmp_path / "shapes" / "val", "--repeats", 1, "--num-detections", 4),
        *("--output", tmp_path, "--opts", "DATALOADER.NUM_WORKERS", 0),
        DETECTRON2_DATASETS=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "benchmark.json").read_text())
    models = {model["label"]: model for model in record["models"]}
    assert list(models) == ["yolact_shapes, amp", "retinanet, amp"]
    ours, theirs = models.values()
    assert 0 <= ours["mask_ap"] <= 100 and 0 <= ours["box_ap"] <= 100
    assert theirs["mask_ap"] is None and not theirs["has_masks"]
    # Forced where the weights are random, and nowhere else.
    assert [row["detections"] for row in record["speed"]] == [100, 4]
    assert "box AP" in done.stdout and "Random weights: retinanet, amp. 4 detect" in done.stdout


@pytest.mark.parametrize(
    "args, message",
    [
        (["--config-file", "nowhere.yaml"], "no config file 'nowhere.yaml'"),
        (["--config-file", SHAPES, "--weights", "missing.pth"], "no weights file 'missing.pth'"),
        (["--config-file", SHAPES, "--input", __file__], "cannot be read as a picture"),
        (["--config-file", SHAPES, "--input", "no.png"], "there is no picture 'no.png'"),
        (["--config-file", SHAPES, "--sizes", "640"], "'640' should be WIDTHxHEIGHT"),
        (["--config-file", SHAPES, "--variants", "amp+fast"], "unknown variant 'fast'; known are"),
        (["--config-file", RETINANET, "--variants", "optimized"], "none of the models has a vari"),
        (["--config-file", SHAPES, "--variants", "amp+optimized"], "'optimized' must come first"),
        (["--config-file", SHAPES, "--repeats", "0"], "0 is not positive"),
        (["--config-file", SHAPES, "--opts", "NO.KEY", "1"], "NO.KEY"),
        (["--config-file", SHAPES, "--dataset", "shapes_val"], "needs weights"),
        (
            ["--config-file", SHAPES, "--sizes", "90x60", "--num-detections", "9999"],
            "9999 detections cannot be forced",
        ),
    ],
)
def test_bad_input_is_named(args, message, monkeypatch, capsys):
    assert refused("benchmark.py", ["--device", "cpu", *args], monkeypatch)
    shown = capsys.readouterr().err
    assert "usage:" in shown and message in shown


def refused(program, args, monkeypatch):
    """Whether a program, run in this process, ends as argparse does."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / program), run_name="__main__")
    return ended.value.code == 2


def test_weights_of_another_model(tmp_path, shapes_cfg, monkeypatch, capsys):
    weights = tmp_path / "model.pth"
    shapes_cfg.MODEL.YOLACT.NUM_CLASSES = 7
    torch.save({"model": build_model(shapes_cfg).state_dict()}, weights)
    args = ["--device", "cpu", "--config-file", SHAPES, "--weights", weights]
    assert refused("benchmark.py", args, monkeypatch)
    assert "NUM_CLASSES" in capsys.readouterr().err


def test_ops(tmp_path):
    output = tmp_path / "ops.json"
    done = run(
        *("benchmark_ops.py", "--nms-boxes", 20, "--mask-boxes", 3, 5, "--sizes", "90x60"),
        *("--device", "cpu", "--repeats", 2, "--output", output),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert [row["name"] for row in record["nms"]][0] == "fast_nms"
    assert len(record["nms"]) == 3 and len(record["masks"]) == 4
    assert "fast_nms" in done.stdout and "90x60" in done.stdout


@pytest.mark.parametrize(
    "args, message",
    [
        (["--sizes", "90"], "'90' should be WIDTHxHEIGHT"),
        (["--nms-boxes", "0"], "must be positive"),
        (["--device", "gpu"], "the device 'gpu' should be"),
    ],
)
def test_bad_input_of_ops(args, message, monkeypatch, capsys):
    assert refused("benchmark_ops.py", args, monkeypatch)
    assert message in capsys.readouterr().err
