"""train_net.py and tools/visualize_predictions.py, run as a user runs them."""

import json
import os
import subprocess
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

SMALL = "MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 DATALOADER.NUM_WORKERS 0".split()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(str(root / "shapes"), num_train=8, num_val=3)
    return root


@pytest.fixture(scope="module")
def run(datasets):
    def run_commands(*commands, config="yolact_shapes"):
        """Run programs with a config; each command is a list of a program and its arguments."""
        commands = [
            [REPO / program, "--config-file", REPO / "configs" / f"{config}.yaml", *args]
            for program, *args in commands
        ]
        return run_programs(*commands, DETECTRON2_DATASETS=str(datasets))

    return run_commands


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """The output folder, and what training, evaluation and resumed training printed."""
    folder = tmp_path_factory.mktemp("trained")
    weights = ["MODEL.WEIGHTS", folder / "model_final.pth"]
    done = run(
        ["train_net.py", *SMALL, "SOLVER.MAX_ITER", 3, "OUTPUT_DIR", folder],
        ["train_net.py", "--eval-only", *SMALL, *weights, "OUTPUT_DIR", folder / "eval"],
        ["train_net.py", "--resume", *SMALL, "SOLVER.MAX_ITER", 5, "OUTPUT_DIR", folder],
    )
    assert all(program.returncode == 0 for program in done), [program.stderr for program in done]
    return folder, [program.stdout for program in done]


def metrics(folder):
    """All lines of metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_training_writes_a_checkpoint_metrics_and_ap(trained):
    folder, (training, _, resumed) = trained
    recorded = {key: value for line in metrics(folder) for key, value in line.items()}
    for key in ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "total_loss", "lr"):
        assert key in recorded
    assert "bbox/AP" in recorded and "segm/AP" in recorded
    assert list(folder.glob("events.out.tfevents.*"))
    assert "eta" in training
    assert "Starting training from iteration 3" in resumed
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 4


def test_eval_only_gives_the_ap_of_training(trained):
    folder, (_, evaluation, _) = trained
    after_training = next(line for line in metrics(folder) if "segm/AP" in line)
    expected = ",".join(f"{after_training[f'segm/{key}']:.4f}" for key in ("AP", "AP50", "AP75"))
    assert expected in evaluation


def test_predictions_are_drawn_beside_the_ground_truth(trained, run, datasets, tmp_path):
    (done,) = run(
        [
            "tools/visualize_predictions.py", "--output", tmp_path / "drawn", "--num-images", 2,
            "--scale", 1, "--sheet", tmp_path / "sheet.png", *SMALL,
            "MODEL.WEIGHTS", trained[0] / "model_final.pth",
        ]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "drawn")) == ["000000.png", "000001.png"]
    original, first, second, sheet = (
        cv2.imread(str(path))
        for path in (
            datasets / "shapes/val/000000.png",
            tmp_path / "drawn/000000.png",
            tmp_path / "drawn/000001.png",
            tmp_path / "sheet.png",
        )
    )
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


def test_yolact_plus_ranks_masks_by_their_own_scores(run, tmp_path):
    (done,) = run(
        [
            "train_net.py", *SMALL, "INPUT.IMAGE_SIZE", 96, "SOLVER.MAX_ITER", 2,
            "OUTPUT_DIR", tmp_path, "MODEL.YOLACT.MASK_IOU.CONV_DIMS", "[4]",
            "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", 0.0,  # An untrained model finds nothing else.
        ],
        config="yolact_plus_shapes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recorded = {key for line in metrics(tmp_path) for key in line}
    assert {"loss_mask_iou", "bbox/AP", "segm/AP"} <= recorded
    boxes, masks = (
        json.loads((tmp_path / "inference" / task / "coco_instances_results.json").read_text())
        for task in ("bbox", "segm")
    )
    assert len(boxes) == len(masks) > 0
    assert len({b["score"] and m["score"] / b["score"] for b, m in zip(boxes, masks)}) > 1


def test_bad_input_is_refused_before_training(run, tmp_path):
    train = {
        "4 categories, but MODEL.YOLACT.NUM_CLASSES is 7": ["MODEL.YOLACT.NUM_CLASSES", 7],
        "'nowhere' is not registered. ": ["DATASETS.TRAIN", "('nowhere',)"],
        "pascal_sbd_train.json": ["DATASETS.TRAIN", "('pascal_sbd_train',)"],
        "no file 'nowhere.pth'": ["MODEL.WEIGHTS", "nowhere.pth"],
        "Non-existent key: SOLVER.LR": ["SOLVER.LR", 1],
        "MODEL.WEIGHTS is empty": ["MODEL.WEIGHTS", ""],  # with --eval-only
    }
    draw = {
        "DATASETS.TEST is empty": ["DATASETS.TEST", "()"],
        "'nowhere' is not registered. ": ["DATASETS.TEST", "('nowhere',)"],
        "missing.pth": ["MODEL.WEIGHTS", "missing.pth"],
    }
    tool = ["tools/visualize_predictions.py", "--output", tmp_path / "drawn"]
    done = run(
        *(
            [
                "train_net.py",
                *(["--eval-only"] if "" in opts else []),
                *SMALL,
                *opts,
                "OUTPUT_DIR",
                tmp_path / "out",
            ]
            for opts in train.values()
        ),
        *([*tool, *SMALL, *opts] for opts in draw.values()),
    )
    for program, message in zip(done, [*train, *draw]):
        assert_refused(program, message)
        assert "Starting training" not in program.stdout
    assert not list(tmp_path.glob("drawn/*"))


@pytest.mark.distributed
def test_bad_input_of_two_processes_is_reported_once(datasets, tmp_path):
    done = subprocess.run(
        [sys.executable, REPO / "train_net.py", "--num-gpus", "2",
         "--config-file", REPO / "configs/yolact_shapes.yaml", *SMALL,
         "MODEL.YOLACT.NUM_CLASSES", "7", "OUTPUT_DIR", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(datasets)},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert_refused(done, "4 categories, but MODEL.YOLACT.NUM_CLASSES is 7")
    assert done.stderr.count("error: ") == 1


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
    new, resumed = run_children(tmp_path, resume, (tmp_path / "new",), (trained[0],))
    assert "CHECK_IMAGES True" in new.log
    assert "CHECK_IMAGES False" in resumed.log
    config = yaml.safe_load((trained[0] / "config.yaml").read_text())
    assert config["DATASETS"]["CHECK_IMAGES"] is True
    # The run is on the CPU, which it says once; a later run with its config.yaml may find a GPU.
    assert "DEVICE cpu" in new.log and new.log.count("no GPU is found") == 1
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert config["MODEL"]["DEVICE"] == "cuda"
