import json
import os

import cv2
from processes import assert_refused, run_tool, run_tools


def write_run(folder, end=""):
    folder.mkdir()
    records = [
        {"iteration": i, "total_loss": 9 / (i + 1), "loss_mask": 1.0, "lr": 0.1} for i in range(50)
    ]
    records.append({"iteration": 50, "segm/AP": 30.0, "bbox/AP": float("nan")})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, records)) + end)
    return folder


def test_runs_are_drawn(tmp_path):
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", end='\n{"iteration": 51, "los')
    output = tmp_path / "plot.png"
    done = run_tool("plot_training", first, second / "metrics.json", "--output", output)
    assert done.returncode == 0, done.stderr
    assert f"{second / 'metrics.json'}: 1 line(s) cut off, left out" in done.stdout
    assert "first: " not in done.stdout
    drawing = cv2.imread(str(output))
    # Two rows of three panels for losses, AP of the masks and learning rate.
    assert drawing.shape == (600, 1260, 3)
    for color in ((180, 119, 31), (14, 127, 255)):  # matplotlib's first two, as BGR
        assert (drawing == color).all(axis=2).any()
    assert sorted(os.listdir(tmp_path)) == ["first", "plot.png", "second"]


def test_bad_input_is_refused(tmp_path):
    good = write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no metrics")
    missing, empty, text, unwritable = run_tools(
        "plot_training",
        (tmp_path / "missing", "--output", tmp_path / "plot.png"),
        (good, tmp_path / "empty", "--output", tmp_path / "plot.png"),
        (tmp_path / "text", "--output", tmp_path / "plot.png"),
        (good, "--output", tmp_path / "text" / "plot.png"),
    )
    assert_refused(missing, tmp_path / "missing")
    assert_refused(empty, tmp_path / "empty" / "metrics.json")
    assert_refused(text, tmp_path / "text", "no line of metrics")
    assert_refused(unwritable, tmp_path / "text" / "plot.png")
    assert sorted(os.listdir(tmp_path)) == ["empty", "good", "text"]
