"""demo.py with the arguments of a user."""

import json
import os
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from processes import assert_refused, run_here
from tqdm import tqdm
from videos import HEIGHT, WIDTH, Camera, numbers, read_video, write_video

from yolact_d2 import model_zoo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Arguments for a model with random weights that finds something everywhere."""
    weights = tmp_path_factory.mktemp("model") / "weights.pth"
    torch.manual_seed(0)
    torch.save({"model": model_zoo.get("yolact_shapes", device="cpu").state_dict()}, weights)
    return [
        "--opts", "MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu", "INPUT.IMAGE_SIZE", 64,
        "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", 0.0,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "numbers.avi", 11)


@pytest.fixture
def run(monkeypatch):
    """Run the demo in this process, without a display."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    # Of two --config-file the last counts.
    return lambda *args: run_here("demo/demo.py", "--config-file", "yolact_shapes", *args)


def test_a_folder_and_a_glob_are_drawn_and_a_truncated_image_is_skipped(tmp_path, model, run):
    for name in ("in/000000000139.jpg", "in/7.png", "more/8.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(tmp_path / name), image)
    complete = (tmp_path / "in" / "000000000139.jpg").read_bytes()
    (tmp_path / "in" / "5.jpg").write_bytes(complete[:-200])
    done = run(
        "--input", tmp_path / "in", tmp_path / "more" / "*.png", "--output", tmp_path / "out",
        "--results-json", tmp_path / "results.json", "--confidence-threshold", 0, "--top-k", 3,
        *model,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"skipped {tmp_path / 'in' / '5.jpg'}: " in done.stderr
    assert "1 of 4 could not be read" in done.stderr
    assert "3 frames in" in done.stdout and "frames per second" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["000000000139.jpg", "7.png", "8.png"]
    original = cv2.imread(str(tmp_path / "in" / "7.png"))
    drawing = cv2.imread(str(tmp_path / "out" / "7.png"))
    assert drawing.shape == original.shape and (drawing != original).any()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["image_id"] for result in results] == [139] * 3 + [7] * 3 + [8] * 3
    classes = {1: "circle", 2: "rectangle", 3: "triangle", 4: "star"}
    assert all(classes[r["category_id"]] == r["category_name"] for r in results)


def test_results_of_chosen_classes_as_polygons_need_no_output_and_no_display(
    tmp_path, model, video, run
):
    path = tmp_path / "results.json"
    args = ["--video-input", video, "--results-json", path, "--confidence-threshold", 0]
    assert run(*args, "--classes", "star", "circle", "--polygons", *model).returncode == 0
    results = json.loads(path.read_text())
    assert list(dict.fromkeys(result["image_id"] for result in results)) == list(range(11))
    assert {result["category_name"] for result in results} == {"star", "circle"}
    polygons = [polygon for result in results for polygon in result["segmentation"]]
    assert polygons and all(len(polygon) >= 8 for polygon in polygons)
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    "args, source, name",
    [([], 0, "camera_0"), (["3"], 3, "camera_3"), (["/dev/null"], "/dev/null", "null")],
)
def test_interrupting_a_camera_completes_its_video(
    tmp_path, model, run, monkeypatch, args, source, name
):
    sources = []

    def capture(source):
        sources.append(source)
        return Camera(interrupted_before=7)  # the first frame is read to check the camera

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", capture)
        assert run("--webcam", *args, "--output", tmp_path / "out", *model).returncode == 0
    assert sources == [source]
    assert os.listdir(tmp_path / "out") == [f"{name}.mp4"]
    assert numbers(read_video(tmp_path / "out" / f"{name}.mp4")) == list(range(2, 7))


def test_closing_the_window_ends_the_demo(run, model, video, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    keys = iter([-1, -1, 27])
    monkeypatch.setattr(cv2, "imshow", lambda title, drawing: None)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: next(keys))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    assert "2 frames in" in run("--video-input", video, *model).stdout


def test_interrupted_images_keep_the_complete_drawings(tmp_path, model, run, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    write = cv2.imwrite

    def interrupted(path, drawing):
        if path.endswith("5.png"):
            raise KeyboardInterrupt
        return write(path, drawing)

    monkeypatch.setattr(cv2, "imwrite", interrupted)
    done = run("--input", *paths, "--output", tmp_path / "out", *model)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == [f"{i}.png" for i in range(5)]


def test_interrupted_video_leaves_the_old_file(tmp_path, model, video, run, monkeypatch):
    monkeypatch.setattr(tqdm, "update", Mock(side_effect=KeyboardInterrupt))
    (tmp_path / "old.mp4").write_text("old")
    done = run("--video-input", video, "--output", tmp_path / "old.mp4", *model)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert (tmp_path / "old.mp4").read_text() == "old" and os.listdir(tmp_path) == ["old.mp4"]


def test_a_truncated_video_is_named_and_what_was_drawn_is_kept(tmp_path, model, run):
    path = tmp_path / "cut.mkv"
    data = open(write_video(path, 12, "mp4v"), "rb").read()
    path.write_bytes(data[: len(data) // 2])
    done = run("--video-input", path, "--output", tmp_path / "out.mp4", *model)
    frames = read_video(tmp_path / "out.mp4")
    assert done.returncode == 1 and 1 <= len(frames) < 12
    assert f"{path}: it ends after {len(frames)} of 12 frames" in done.stderr
    assert numbers(frames) == list(range(len(frames)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files for the cases below."""
    folder = tmp_path_factory.mktemp("bad")
    cv2.imwrite(str(folder / "good.png"), np.zeros((9, 9, 3), np.uint8))
    return folder


GOOD = "--input {0}/good.png --output {0}/out"


@pytest.mark.parametrize(
    "args, message",
    [
        ("--input {0}/good.png", "there is no display"),
        ("--input {0}/good.png --output /proc/out", "cannot write '/proc/out/good.png'"),
        ("--video-input {0}/a.mp4 --output {0}/out", "{0}/a.mp4: there is no such file"),
        (
            f"{GOOD} --config-file yolact",
            "there is no config file and no model 'yolact'; the models are embedmask_R_",
        ),
        (f"{GOOD} --opts MODEL.WEIGHTS", "odd length"),
        (f"{GOOD} --opts MODEL.WEIGHTS {{0}}/a.pth", "there is no file '{0}/a.pth'"),
        (f"{GOOD} --batch-size 0", "--batch-size is 0"),
        (f"{GOOD} --polygons", "--polygons needs --results-json"),
        (
            f"{GOOD} --classes star dog",
            "no class 'dog': the model's classes are circle, rectangle, triangle, star",
        ),
        (f"{GOOD} --results-json {{0}}", "cannot write '{0}': it is a folder"),
    ],
)
def test_bad_arguments_are_argparse_errors(folder, run, args, message):
    done = run(*args.format(folder).split())
    assert_refused(done, "\ndemo.py: error: ", message.format(folder))
    assert not done.stdout
