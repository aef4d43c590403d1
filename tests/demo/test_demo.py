"""demo.py, run as a user runs it."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from plain import eventually

from yolact_d2 import model_zoo

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(REPO, "demo", "demo.py")
SIZE = (64, 48)  # width, height
NO_DISPLAY = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What the program is called with for a random model, which finds something everywhere."""
    weights = tmp_path_factory.mktemp("model") / "weights.pth"
    torch.manual_seed(0)
    torch.save({"model": model_zoo.get("yolact_shapes", device="cpu").state_dict()}, weights)
    return [
        "--opts", "MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "INPUT.IMAGE_SIZE", 64,
        "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", 0.0,
    ]  # fmt: skip


def command(*args):
    # A later --config-file counts.
    return [str(word) for word in (PROGRAM, "--config-file", "yolact_shapes", *args)]


def run(*args):
    return subprocess.run(
        [sys.executable, *command(*args)], capture_output=True, text=True, env=NO_DISPLAY
    )


def write_video(path, count, codec="MJPG"):
    """Frame i has the brightness 20 * i, and a pattern of its own."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, SIZE)
    rng = np.random.default_rng(0)
    for i in range(count):
        frame = 20 * (i % 12) + 5 + rng.integers(-5, 6, (*SIZE[::-1], 3))
        writer.write(frame.astype(np.uint8))
    writer.release()
    return path


def frames(path):
    capture, images = cv2.VideoCapture(str(path)), []
    while (image := capture.read()[1]) is not None:
        images.append(image)
    return images


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "numbers.avi", 11)


def test_pictures_of_folder_and_glob_and_one_that_is_torn(tmp_path, model):
    for name in ("in/000000000139.jpg", "in/7.png", "more/8.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
        cv2.imwrite(str(tmp_path / name), image)
    whole = (tmp_path / "in" / "000000000139.jpg").read_bytes()
    (tmp_path / "in" / "5.jpg").write_bytes(whole[:-200])
    done = run(
        "--input", tmp_path / "in", tmp_path / "more" / "*.png", "--output", tmp_path / "out",
        "--results-json", tmp_path / "results.json", "--confidence-threshold", 0, "--top-k", 3,
        *model,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"skipped {tmp_path / 'in' / '5.jpg'}: " in done.stderr
    assert "1 of 4 could not be read" in done.stderr
    assert "3 frames in" in done.stdout and "frames per second" in done.stdout
    assert "frames/s" in done.stderr  # the progress bar
    assert sorted(os.listdir(tmp_path / "out")) == ["000000000139.jpg", "7.png", "8.png"]
    original = cv2.imread(str(tmp_path / "in" / "7.png"))
    drawn = cv2.imread(str(tmp_path / "out" / "7.png"))
    assert drawn.shape == original.shape and (drawn != original).any()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["image_id"] for result in results] == [139] * 3 + [7] * 3 + [8] * 3
    classes = {1: "circle", 2: "rectangle", 3: "triangle", 4: "star"}
    assert all(classes[r["category_id"]] == r["category_name"] for r in results)


def test_video_has_every_frame_in_order(tmp_path, model, video):
    # Nothing is drawn, so that frames can be told by their brightness.
    done = run(
        "--video-input", video, "--output", tmp_path / "out", "--confidence-threshold", 1, *model
    )
    assert done.returncode == 0, done.stderr
    assert "11 frames in" in done.stdout
    assert os.listdir(tmp_path / "out") == ["numbers.mp4"]
    drawn = frames(tmp_path / "out" / "numbers.mp4")
    assert [int(frame.mean() / 20) for frame in drawn] == list(range(11))


def run_here(monkeypatch, *args):
    """In this process, which is quicker."""
    monkeypatch.setattr(sys, "argv", command(*args))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(PROGRAM, run_name="__main__")
    return end.value.code


def test_batch_size_changes_nothing(tmp_path, model, video, monkeypatch):
    results = []
    for batch_size in (1, 4):
        path = tmp_path / f"{batch_size}.json"
        # Results alone need no output and no display.
        args = ["--video-input", video, "--results-json", path, "--batch-size", batch_size]
        args += ["--confidence-threshold", 0, "--top-k", 2, *model]
        assert run_here(monkeypatch, *args) == 0
        results.append(json.loads(path.read_text()))
    assert results[0] == results[1]
    assert [result["image_id"] for result in results[0]] == [i for i in range(11) for _ in "ab"]
    assert sorted(os.listdir(tmp_path)) == ["1.json", "4.json"]


def test_what_there_is_of_a_torn_video_is_kept(tmp_path, model, monkeypatch, capsys):
    data = write_video(tmp_path / "whole.mkv", 12, codec="mp4v").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    args = ["--video-input", tmp_path / "cut.mkv", "--output", tmp_path / "out.avi", *model]
    assert run_here(monkeypatch, *args) == 1
    count = len(frames(tmp_path / "out.avi"))
    assert 1 <= count < 12
    errors = capsys.readouterr().err
    assert f"{tmp_path / 'cut.mkv'}: it ends after {count} of 12 frames" in errors


def test_interrupted_video_leaves_nothing_half_written(tmp_path, model):
    (tmp_path / "old.mp4").write_text("old")
    long = write_video(tmp_path / "long.avi", 3000)
    process = subprocess.Popen(
        [sys.executable, *command("--video-input", long, "--output", tmp_path / "old.mp4", *model)],
        stderr=subprocess.PIPE, env=NO_DISPLAY,
    )  # fmt: skip
    try:
        assert eventually(lambda: list(tmp_path.glob(".*.partial.old.mp4")), seconds=60)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"interrupted" in errors and b"Traceback" not in errors
    assert (tmp_path / "old.mp4").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["long.avi", "old.mp4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the cases below."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty").mkdir()
    cv2.imwrite(str(folder / "good.png"), np.zeros((9, 9, 3), np.uint8))
    (folder / "wrong.yaml").write_text("MODEL: {YOLACT: {NUMBER_OF_CLASSES: 3}}")
    (folder / "text.yaml").write_text("a: [")
    (folder / "other.yaml").write_text("MODEL: {MASK_ON: True}")
    write_video(folder / "zero.avi", 0)
    return folder


GOOD = "--input {0}/good.png --output {0}/out"
BAD = {
    "--input {0}/gone.png --output {0}/out": "there is no file or folder '{0}/gone.png'",
    "--input {0}/empty --output {0}/out": "the folder '{0}/empty' has no pictures",
    "--video-input {0}/zero.avi --output {0}/out": "{0}/zero.avi cannot be read as a video",
    f"{GOOD} --config-file {{0}}/wrong.yaml": "{0}/wrong.yaml, or --opts: ",
    "--input {0}/good.png --output /proc/out": "cannot write '/proc/out/good.png'",
}


@pytest.fixture(scope="module")
def bad_runs(folder):
    """All started at once, for they take as long as their imports."""
    return {
        args: subprocess.Popen(
            [sys.executable, *command(*args.format(folder).split())],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=NO_DISPLAY,
        )
        for args in BAD
    }  # fmt: skip


@pytest.mark.parametrize("args", BAD)
def test_bad_input_is_named_before_work_starts(folder, bad_runs, args):
    output, errors = bad_runs[args].communicate()
    assert bad_runs[args].returncode == 2, errors
    assert errors.splitlines()[-1].startswith("demo.py: error: ")
    assert BAD[args].format(folder) in errors
    assert "Traceback" not in errors and not output


@pytest.mark.parametrize(
    "args, message",
    [
        ("--output {0}/out", "--input --video-input --webcam is required"),
        (f"{GOOD} --video-input a", "not allowed with argument --input"),
        ("--input {0}/good.png", "there is no display"),
        ("--video-input {0}/a.mp4 --output {0}/out", "there is no video file '{0}/a.mp4'"),
        ("--video-input {0}/good.png --output {0}/out.gif", "a video must end with one of .avi"),
        ("--webcam 987 --output {0}/out", "camera 987 cannot be read"),
        (f"{GOOD} --config-file yolact", "there is no model 'yolact'; the models are yolact_R_"),
        (f"{GOOD} --config-file {{0}}/nowhere.yaml", "there is no config file '{0}/nowhere.yaml'"),
        (f"{GOOD} --config-file {{0}}/text.yaml", "{0}/text.yaml, or --opts: "),
        (f"{GOOD} --config-file {{0}}/other.yaml", "is GeneralizedRCNN, not YOLACT"),
        (f"{GOOD} --opts MODEL.WEIGHTS", "odd length"),
        (f"{GOOD} --opts MODEL.WEIGHTS {{0}}/a.pth", "there is no file '{0}/a.pth'"),
        (f"{GOOD} --opts MODEL.WEIGHTS {{0}}/good.png", "{0}/good.png is truncated or not"),
        (f"{GOOD} --batch-size 0", "--batch-size is 0"),
        (f"{GOOD} --confidence-threshold 50", "threshold is 50.0, not in 0..1"),
        (f"{GOOD} --top-k -1", "top-k is -1"),
        (f"{GOOD} --results-json {{0}}", "cannot write '{0}': it is a folder"),
        ("--input {0}/good.png --output {0}", "'{0}/good.png' is one of the pictures"),
    ],
)
def test_bad_arguments_are_named(folder, args, message, monkeypatch, capsys):
    assert run_here(monkeypatch, *args.format(folder).split()) == 2
    assert message.format(folder) in capsys.readouterr().err
