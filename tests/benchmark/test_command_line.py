"""`python -m tools.benchmark`, in this process."""

import json
import pickle
import sys

import pytest
import torch
from detectron2.modeling import build_model
from small_models import BENCHMARK_MODELS

from tools.benchmark import measure, memory
from tools.benchmark.__main__ import main
from yolact_d2.data.shapes import generate_shapes, register_shapes


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the program and returns what it wrote as JSON."""

    def peak_memory(*call):  # in this process, to save time; test_memory.py starts a new one
        return memory._measure(*pickle.loads(pickle.dumps(call)))

    monkeypatch.setattr(measure, "peak_memory", peak_memory)

    def run(*args):
        command = ["x", "--device", "cpu", "--output", str(tmp_path), *map(str, args)]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return json.loads((tmp_path / "benchmark.json").read_text())

    return run


@pytest.mark.slow
def test_speed_and_training(run, capsys):
    results = run(
        *("--model", *BENCHMARK_MODELS["yolact"], "--model", *BENCHMARK_MODELS["mask_rcnn"]),
        *("--sizes", "90x60", "--num-images", 2, "--batch-sizes", 1, 2, "--repeats", 2, "--train"),
    )
    rows = results["speed"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("yolact", 1), ("mask_rcnn", 1), ("yolact", 2), ("mask_rcnn", 2)
    ]  # fmt: skip
    for row in rows:
        assert row["images"] == "90x60" and row["detections"] == 7
        assert len(row["seconds"]) == len(row["stage_seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["stages"].keys() == {"preprocess", "backbone", "heads", "nms", "masks"}
        assert row["gflops"] > 0.01 and row["memory"]["process"] > 100e6
    assert rows[0]["ratio"] == 1 and rows[1]["ratio"] != 1
    assert [row["size"] for row in results["training"]] == [[64, 64], [64, 96]]
    assert not any("COMPARABLE" in note for note in results["notes"])
    assert "## Training" in capsys.readouterr().out


@pytest.mark.slow
def test_ap_of_models_with_weights(run, tmp_path, shapes_cfg, capsys):
    generate_shapes(str(tmp_path / "shapes"), num_train=1, num_val=3)
    register_shapes(str(tmp_path / "shapes"), prefix="benchmark_shapes")
    weights = tmp_path / "model.pth"
    torch.save({"model": build_model(shapes_cfg).state_dict()}, weights)
    few = [*BENCHMARK_MODELS["faster_rcnn"], "MODEL.RPN.POST_NMS_TOPK_TEST", 1]
    results = run(
        *("--model", "trained", "yolact_shapes", "MODEL.WEIGHTS", weights),
        *("DATALOADER.NUM_WORKERS", 0, "--model", *few, "TEST.DETECTIONS_PER_IMAGE", 99),
        *("--dataset", "benchmark_shapes_val", "--variants", "optimized", "amp"),
        *("--images", tmp_path / "shapes" / "val", "--repeats", 1),
    )
    models = {model["model"]: model for model in results["models"]}
    assert list(models) == ["trained, optimized", "trained, amp", "faster_rcnn, amp"]
    assert 0 <= models["trained, amp"]["segm AP"] <= 100
    assert "bbox AP" not in models["faster_rcnn, amp"]
    # 80 classes of one proposal are not 99 detections.
    assert "NOT COMPARABLE: faster_rcnn, amp has random weights" in results["notes"][-1]
    assert "segm AP" in capsys.readouterr().out


def test_wrong_arguments_are_named(monkeypatch, capsys):
    for args, message in [
        (["--model", "a", "nowhere"], "no config file and no model 'nowhere'"),
        (["--model", "a", "yolact_shapes", "--model", "a", "yolact_shapes"], "the same label"),
        (["--images", "no.png"], "no.png"),
        (["--sizes", "640"], "'640' should be WIDTHxHEIGHT"),
        (["--variants", "amp+fast"], "unknown variants ['fast']; known are"),
        (["--variants", "optimized", "--model", *BENCHMARK_MODELS["faster_rcnn"]], "no model has"),
        (["--images", __file__], "test_command_line.py cannot be read as an image"),
        (["--repeats", "0"], "0 is not positive"),
    ]:
        monkeypatch.setattr(sys, "argv", ["benchmark", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and message in capsys.readouterr().err
