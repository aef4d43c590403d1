"""train_net.py and tools/visualize_predictions.py, run as a user runs them."""

import json
import os
import sys

import cv2
import pytest
import torch
import yaml
from processes import REPO, assert_refused, run_programs
from ranks import run_children

from yolact_d2.data.shapes import generate_shapes
from yolact_d2.engine import train_net

pytestmark = pytest.mark.slow

SMALL = [
    *"MODEL.DEVICE cpu INPUT.IMAGE_SIZE 96 DATALOADER.NUM_WORKERS 0 SOLVER.MAX_ITER 3".split(),
    "MODEL.YOLACT.MASK_IOU.CONV_DIMS", "[4]",
    "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", 0.0,  # An untrained model finds nothing else.
]  # fmt: skip
# Options that are refused, by the message.
BAD_FOR_TRAINING = {
    "4 categories, but MODEL.YOLACT.NUM_CLASSES is 7": ["MODEL.YOLACT.NUM_CLASSES", 7],
    "'nowhere' is not registered. ": ["DATASETS.TRAIN", "('nowhere',)"],
    "pascal_sbd_train.json": ["DATASETS.TRAIN", "('pascal_sbd_train',)"],
    "no file 'nowhere.pth'": ["MODEL.WEIGHTS", "nowhere.pth"],
    "Non-existent key: SOLVER.LR": ["SOLVER.LR", 1],
    "MODEL.WEIGHTS is empty": ["--eval-only", "MODEL.WEIGHTS", ""],
}
BAD_FOR_DRAWING = {
    "DATASETS.TEST is empty": ["DATASETS.TEST", "()"],
    "'nowhere' is not registered. ": ["DATASETS.TEST", "('nowhere',)"],
    "missing.pth": ["MODEL.WEIGHTS", "missing.pth"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the dataset in shapes/, and what the programs write."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module")
def runs(folder):
    """A training, its evaluation, drawings, a resumed training, and programs with bad input."""
    generate_shapes(str(folder / "shapes"), num_train=8, num_val=3)
    config = ["--config-file", REPO / "configs/yolact_plus_shapes.yaml"]
    train = [REPO / "train_net.py", *config]
    draw = [REPO / "tools/visualize_predictions.py", *config, "--output"]
    weights = ["MODEL.WEIGHTS", folder / "output/model_final.pth"]
    return run_programs(
        [*train, *SMALL, "OUTPUT_DIR", folder / "output"],
        [*train, "--eval-only", *SMALL, *weights, "OUTPUT_DIR", folder / "eval"],
        [
            *draw, folder / "drawn", "--num-images", 2, "--scale", 1, "--sheet",
            folder / "sheet.png", *SMALL, *weights,
        ],
        [*train, "--resume", *SMALL, "SOLVER.MAX_ITER", 5, "OUTPUT_DIR", folder / "output"],
        *(
            [*train, *bad, *SMALL, "OUTPUT_DIR", folder / "bad"]
            for bad in BAD_FOR_TRAINING.values()
        ),
        *([*draw, folder / "bad drawn", *bad, *SMALL] for bad in BAD_FOR_DRAWING.values()),
        DETECTRON2_DATASETS=str(folder),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(runs, folder):
    """The output folder of the training."""
    assert not any(done.returncode for done in runs[:4]), [done.stderr for done in runs[:4]]
    return folder / "output"


def metrics(folder):
    """All lines of metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_training_writes_a_checkpoint_metrics_and_ap(runs, trained):
    recorded = {key for line in metrics(trained) for key in line}
    for loss in ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "loss_mask_iou"):
        assert loss in recorded
    assert {"total_loss", "lr", "bbox/AP", "segm/AP"} <= recorded
    assert list(trained.glob("events.out.tfevents.*"))
    assert "eta" in runs[0].stdout
    assert "Starting training from iteration 3" in runs[3].stdout
    assert torch.load(trained / "model_final.pth", weights_only=True)["iteration"] == 4


def test_eval_only_gives_the_ap_of_training(runs, trained):
    after_training = next(line for line in metrics(trained) if "segm/AP" in line)
    expected = ",".join(f"{after_training[f'segm/{key}']:.4f}" for key in ("AP", "AP50", "AP75"))
    assert expected in runs[1].stdout


def test_yolact_plus_ranks_masks_by_their_own_scores(trained):
    boxes, masks = (
        json.loads((trained / "inference" / task / "coco_instances_results.json").read_text())
        for task in ("bbox", "segm")
    )
    assert len(boxes) == len(masks) > 0
    assert len({b["score"] and m["score"] / b["score"] for b, m in zip(boxes, masks)}) > 1


def test_predictions_are_drawn_beside_the_ground_truth(trained, folder):
    assert sorted(os.listdir(folder / "drawn")) == ["000000.png", "000001.png"]
    original, first, second, sheet = (
        cv2.imread(str(folder / path))
        for path in (
            "shapes/val/000000.png", "drawn/000000.png", "drawn/000001.png", "sheet.png",
        )
    )  # fmt: skip
    height, width = original.shape[:2]
    assert first.shape == (height, 2 * width, 3)
    # The ground truth is drawn over the image on the left.
    assert (first[:, :width] != original).any()
    assert (first[:, :width] == original).mean() > 0.1
    # The sheet has one below the other, in cells that are 8 pixels larger than the larger one.
    cell = max(height, second.shape[0]) + 8, max(2 * width, second.shape[1]) + 8
    assert sheet.shape == (2 * cell[0], cell[1], 3)
    top, left = (cell[0] - height) // 2, (cell[1] - 2 * width) // 2
    assert (sheet[top : top + height, left : left + 2 * width] == first).all()


def test_bad_input_is_refused_before_training(runs, folder):
    for done, message in zip(runs[4:], [*BAD_FOR_TRAINING, *BAD_FOR_DRAWING], strict=True):
        assert_refused(done, message)
        assert "Starting training" not in done.stdout
    assert not list(folder.glob("bad drawn/*"))


def resume(folder):
    """Run train_net with a trainer that only prints."""

    class PrintingTrainer:
        def __init__(self, cfg):
            print("CHECK_IMAGES", cfg.DATASETS.CHECK_IMAGES, "DEVICE", cfg.MODEL.DEVICE)

        def resume_or_load(self, resume):
            pass

        def train(self):
            pass

    torch.cuda.is_available = lambda: False
    train_net.Trainer = PrintingTrainer
    config = str(REPO / "configs/yolact_shapes.yaml")
    sys.argv = ["train_net.py", "--resume", "--config-file", config, "OUTPUT_DIR", str(folder)]
    train_net.main()


def test_a_resumed_run_does_not_check_images_again(trained, tmp_path):
    new, resumed = run_children(tmp_path, resume, (tmp_path / "new",), (trained,))
    assert "CHECK_IMAGES True" in new.log
    assert "CHECK_IMAGES False" in resumed.log
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["DATASETS"]["CHECK_IMAGES"] is True
    # The run is on the CPU, which it says once; a later run with its config.yaml may find a GPU.
    assert "DEVICE cpu" in new.log and new.log.count("no GPU is found") == 1
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert config["MODEL"]["DEVICE"] == "cuda"
