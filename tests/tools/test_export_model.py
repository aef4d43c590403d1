import sys
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from processes import REPO, assert_refused, run_here
from small_models import tiny_yolact

from tools.export_model import Comparison, compare, match
from yolact_d2.data.shapes import generate_shapes
from yolact_runtime import Detections

CONFIG = REPO / "configs" / "yolact_shapes.yaml"


def test_match_pairs_each_detection_once():
    expected = Instances((50, 50))
    expected.pred_boxes = Boxes([[0, 0, 20, 20], [0, 0, 20, 20], [30, 30, 40, 40], [5, 5, 9, 9]])
    expected.scores = torch.tensor([0.9, 0.9, 0.5, 0.4])
    expected.pred_classes = torch.tensor([1, 1, 0, 2])
    boxes = [[5.5, 5, 9, 9], [30.05, 30, 40, 40], [0, 0, 20, 20], [30, 30, 40, 40]]
    got = Detections(
        np.array(boxes, np.float32),
        np.array([0.4, 0.501, 0.899, 0.5], np.float32),
        np.array([2, 0, 1, 1]),
        masks=np.zeros((4, 50, 50), bool),
    )
    assert match(expected, got, int8=False) == [(0, 2), (2, 1)]
    assert match(expected, got, int8=True) == [(0, 2), (2, 1), (3, 0)]
    nothing = Detections(*(x[:0] for x in got[:4]))
    assert match(expected, nothing, int8=False) == match(expected[:0], got, int8=True) == []


def test_images_without_objects_cannot_be_compared():
    def nothing(image):
        found = Instances((9, 9), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        found.pred_classes = torch.zeros(0)
        return found

    nothing.model = tiny_yolact()
    empty = Detections(*(np.zeros((0, *shape), np.float32) for shape in ((4,), (), (), (9, 9))))
    with pytest.raises(ValueError, match="nothing to compare.* use others"):
        compare(nothing, lambda image: empty, [np.zeros((9, 9, 3), np.uint8)], int8=False)


def test_a_file_agrees_if_detections_and_masks_do():
    def agrees(num_detections, num_found, ious):
        return Comparison(num_detections, num_found, len(ious), ious, []).agrees(0.9, 0.8)

    assert agrees(10, 10, [0.9] * 10) and agrees(10, 10, [0.9] * 9)
    assert not agrees(10, 10, [0.9] * 8)
    assert not agrees(10, 12, [0.9] * 10)  # the file has more
    assert not agrees(10, 10, [0.1] * 10)  # the masks are wrong
    assert not agrees(10, 0, [])


@pytest.mark.slow
def test_program_exports_checks_and_refuses(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs pip install 'yolact_d2[onnx]'")
    generate_shapes(str(tmp_path), num_train=0, num_val=3)
    torch.save({"model": tiny_yolact().state_dict()}, tmp_path / "model.pth")
    opts = [
        "MODEL.WEIGHTS", tmp_path / "model.pth", "INPUT.IMAGE_SIZE", "64",
        "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.YOLACT.HEAD_CONV_DIM", "32",
        "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", "0.0",
    ]  # fmt: skip

    def export(*args, opts=opts, output="m.onnx"):
        return run_here(
            "tools/export_model.py", "--config-file", CONFIG, "--output", tmp_path / output,
            *args, "--opts", *opts,
        )  # fmt: skip

    pictures = sorted((tmp_path / "val").iterdir())
    done = export("--check", *pictures)
    assert done.returncode == 0, done.stderr
    assert "300 of 300 detections of the model are matched by the 300 of the file" in done.stdout
    assert "of the model's" in done.stdout and (tmp_path / "m.onnx").exists()
    for args, output, message in (
        ((), "m.xml", "does not end in .onnx"),
        (("--int8",), "n.onnx", "--int8 needs --calibration"),
        (("--calibration", tmp_path), "n.onnx", "--calibration is for --int8"),
        (("--format", "torch_export", "--opset", 20), "n.pt2", "--opset is for"),
        (("--int8", "--calibration", tmp_path / "none"), "n.onnx", "none"),
        (("--outputs", "raw", "--check", pictures[0]), "n.onnx", "with the outputs masks"),
        (("--check", tmp_path / "model.pth"), "n.onnx", "model.pth"),
        (("--format", "torch_export", "--int8"), "n.pt2", "onnx and openvino"),
    ):
        assert_refused(export(*args, output=output), message)
    with mock.patch.dict(sys.modules, nncf=None):
        done = export("--int8", "--calibration", tmp_path / "val", output="n.onnx")
    assert_refused(done, "nncf is missing: pip install 'yolact_d2[int8]'")
    assert_refused(export(opts=["MODEL.WEIGHTS", ""], output="n.onnx"), "MODEL.WEIGHTS is empty")
    assert not (tmp_path / "n.onnx").exists()
