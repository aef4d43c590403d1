"""train_net.py and tools, run as a user runs them."""

import glob
import json
import os
import subprocess
import sys

import cv2
import pytest
import torch

from yolact_d2.data.shapes import generate_shapes

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = "MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 DATALOADER.NUM_WORKERS 0".split()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(str(root / "shapes"), num_train=8, num_val=3)
    return root


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def run(datasets, output):
    def run_program(program, *args, config="yolact_shapes"):
        path = os.path.join(REPO, "configs", f"{config}.yaml")
        return subprocess.run(
            [sys.executable, os.path.join(REPO, program), "--config-file", path, *args],
            env={**os.environ, "DETECTRON2_DATASETS": str(datasets)},
            cwd=output,
            capture_output=True,
            text=True,
        )

    return run_program


@pytest.fixture(scope="module")
def trained(run, output):
    folder = output / "run"
    done = run("train_net.py", *SMALL, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


def metrics(folder):
    """The last value of everything that was recorded."""
    values = {}
    with open(folder / "metrics.json") as f:
        for line in f:
            values.update(json.loads(line))
    return values


def test_training_leaves_checkpoint_metrics_and_ap(trained):
    folder, done = trained
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2
    recorded = metrics(folder)
    for key in ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "total_loss", "lr"):
        assert key in recorded
    assert "bbox/AP" in recorded and "segm/AP" in recorded
    assert glob.glob(str(folder / "events.out.tfevents.*"))
    assert "eta" in done.stdout


def test_eval_only_gives_the_same_ap_again(trained, run):
    folder, _ = trained
    weights = str(folder / "model_final.pth")
    done = run("train_net.py", "--eval-only", *SMALL, "MODEL.WEIGHTS", weights)
    assert done.returncode == 0, done.stderr
    expected = ",".join(f"{metrics(folder)[f'segm/{k}']:.4f}" for k in ("AP", "AP50", "AP75"))
    assert expected in done.stdout


def test_resume_goes_on_from_the_last_iteration(trained, run):
    folder, _ = trained
    done = run(
        "train_net.py", "--resume", *SMALL, "SOLVER.MAX_ITER", "5", "OUTPUT_DIR", str(folder)
    )
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 3" in done.stdout
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 4


def test_predictions_are_drawn_beside_the_truth(trained, run, datasets, output):
    folder, _ = trained
    pictures = output / "pictures"
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    done = run(
        "tools/visualize_predictions.py", "--output", str(pictures), "--num-images", "2",
        "--scale", "1", "--sheet", str(output / "sheet.png"), *SMALL, *weights,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(pictures)) == ["000000.png", "000001.png"]
    original = cv2.imread(str(datasets / "shapes" / "val" / "000000.png"))
    drawn = cv2.imread(str(pictures / "000000.png"))
    height, width = original.shape[:2]
    assert drawn.shape == (height, 2 * width, 3)
    # The truth is drawn on the left, over the picture.
    assert (drawn[:, :width] != original).any()
    assert (drawn[:, :width] == original).mean() > 0.1
    # One below the other, in cells that are 8 pixels larger than the largest.
    second = cv2.imread(str(pictures / "000001.png"))
    cell = max(height, second.shape[0]) + 8, max(2 * width, second.shape[1]) + 8
    sheet = cv2.imread(str(output / "sheet.png"))
    assert sheet.shape == (2 * cell[0], cell[1], 3)
    top, left = (cell[0] - height) // 2, (cell[1] - 2 * width) // 2
    assert (sheet[top : top + height, left : left + 2 * width] == drawn).all()


@pytest.mark.parametrize(
    "opts, message",
    [
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["DATASETS.TEST", "('own_val',)"], "'own_val' is not registered"),
        (["MODEL.WEIGHTS", "missing.pth"], "missing.pth"),
    ],
)
def test_what_cannot_be_drawn_is_named(run, output, opts, message):
    pictures = output / "nothing"
    done = run("tools/visualize_predictions.py", "--output", str(pictures), *SMALL, *opts)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not os.path.exists(pictures) or not os.listdir(pictures)


def test_yolact_plus_ranks_masks_by_their_own_scores(run, output):
    folder = output / "plus"
    done = run(
        "train_net.py", *SMALL, "INPUT.IMAGE_SIZE", "96", "SOLVER.MAX_ITER", "2",
        "OUTPUT_DIR", str(folder), "MODEL.YOLACT.MASK_IOU.CONV_DIMS", "[4]",
        "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", "0.0",  # or it finds nothing yet
        config="yolact_plus_shapes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recorded = metrics(folder)
    assert {"loss_mask_iou", "bbox/AP", "segm/AP"} <= set(recorded)
    results = {}
    for task in ("bbox", "segm"):
        path = folder / "inference" / task / "coco_instances_results.json"
        results[task] = json.loads(path.read_text())
    assert len(results["bbox"]) == len(results["segm"]) > 0
    ratios = {b["score"] and m["score"] / b["score"] for b, m in zip(*results.values())}
    assert len(ratios) > 1


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.YOLACT.NUM_CLASSES", "7"], "4 categories, but MODEL.YOLACT.NUM_CLASSES is 7"),
        (["DATASETS.TRAIN", "('nowhere',)"], "'nowhere' is not registered"),
        (["DATASETS.TRAIN", "('pascal_sbd_train',)"], "pascal_sbd_train.json"),
    ],
)
def test_wrong_data_is_named_before_training(run, output, opts, message):
    done = run("train_net.py", *SMALL, *opts, "OUTPUT_DIR", str(output / "failed"))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Starting training" not in done.stdout
