import os

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from processes import REPO, assert_refused, run_here

from yolact_d2 import load_config

CONFIG = REPO / "configs" / "yolact_shapes.yaml"
SMALL = ["INPUT.IMAGE_SIZE", "64", "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", "0.0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image and the weights of an untrained model."""
    folder = tmp_path_factory.mktemp("prototypes")
    torch.manual_seed(0)
    model = build_model(load_config(str(CONFIG), ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    cv2.imwrite(str(folder / "image.jpg"), image)
    return folder


def draw(folder, *more, config=CONFIG, image="image.jpg", weights="model.pth", out="out"):
    return run_here(
        "tools/visualize_prototypes.py", "--config-file", config, "--input", folder / image,
        "--output", folder / out, "--confidence-threshold", "0", *more,
        "--opts", *SMALL, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", folder / weights,
    )  # fmt: skip


@pytest.mark.slow
def test_figures_of_prototypes_and_detections(folder):
    best = draw(folder, "--top-k", "1", out="best")
    chosen = draw(folder, "--detections", "1", "--steps", "3", out="chosen")
    none = draw(folder, "--confidence-threshold", "1", out="none")
    for done in (best, chosen, none):
        assert done.returncode == 0, done.stderr
    assert "the prototypes and 1 of 100 detections" in best.stdout
    assert "0 of 0 detections with a score of 1.0 or more" in none.stdout
    first, second, sheet = (f"image_{x}.png" for x in ("detection_0", "detection_1", "prototypes"))
    assert sorted(os.listdir(folder / "best")) == [first, sheet]
    assert sorted(os.listdir(folder / "chosen")) == [second, sheet]
    assert os.listdir(folder / "none") == [sheet]
    sheets = [cv2.imread(str(folder / out / sheet)) for out in ("best", "chosen")]
    assert np.array_equal(*sheets) and sheets[0].shape[1] > 900
    # Six steps and the sum are wider than three and the sum.
    figures = [cv2.imread(str(folder / x)) for x in (f"best/{first}", f"chosen/{second}")]
    assert [figure.shape[1] for figure in figures] == [1460, 860]


def test_bad_input_is_an_error(folder):
    (folder / "text.jpg").write_text("not an image")
    (folder / "cut.jpg").write_bytes((folder / "image.jpg").read_bytes()[:700])
    (folder / "config.yaml").write_text("NO_SUCH_KEY: 1")
    assert_refused(draw(folder, image="missing.jpg"), folder / "missing.jpg")
    assert_refused(draw(folder, image="text.jpg"), folder / "text.jpg")
    assert_refused(draw(folder, image="cut.jpg"), "truncated")
    assert_refused(draw(folder, config=folder / "config.yaml"), "NO_SUCH_KEY")
    assert_refused(draw(folder, weights="missing.pth"), folder / "missing.pth")
    assert_refused(draw(folder, out="text.jpg/out"), folder / "text.jpg")
    sized = run_here(
        "tools/visualize_predictions.py", "--config-file", CONFIG, "--output", folder / "out",
        "--scale", 0,
    )  # fmt: skip
    assert_refused(sized, "--scale is 0, not above 0")
    absent = draw(folder, "--detections", "0", "100")
    assert_refused(absent, "there is no [100]; the image has 100")
    assert not os.path.exists(folder / "out") or not os.listdir(folder / "out")
