import json

import pytest
import torch
from checkpoints import build
from processes import REPO, assert_refused, run_here


def convert(*args):
    return run_here("tools/convert_weights.py", *args)


@pytest.fixture
def official(tmp_path):
    shapes = (REPO / "tests" / "data" / "yolact_resnet50_pascal.keys.json").read_text()
    shapes = json.loads(shapes)
    tensors = {k: torch.rand(shape) if shape else torch.tensor(7) for k, shape in shapes.items()}
    parallel = {f"module.{key}": value for key, value in tensors.items()}
    torch.save(parallel, tmp_path / "official.pth")
    return tensors


def test_conversion_and_back_is_the_identity(tmp_path, official):
    done = convert(tmp_path / "official.pth", tmp_path / "ours.pth")
    assert done.returncode == 0, done.stderr
    assert "yolact_resnet50_pascal" in done.stdout
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert "head.cls_score.weight" in ours

    done = convert(tmp_path / "ours.pth", tmp_path / "back.pth")
    assert done.returncode == 0, done.stderr
    again = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(again) == list(official)
    assert all(torch.equal(again[key], value) for key, value in official.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "official.pth", "ours.pth"]


def test_bad_input_is_an_error(tmp_path, official):
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("text")
    official["maskiou_net.0.weight"] = torch.zeros(8, 1, 3, 3)
    torch.save(official, tmp_path / "plus.pth")
    names = ("other.pth", "text.pth", "missing.pth", "plus.pth")
    outputs = [convert(tmp_path / name, tmp_path / "out.pth") for name in names]
    for name, done in zip(names, outputs):
        assert_refused(done, tmp_path / name)
    assert_refused(outputs[-1], "maskiou_net.0.weight")
    assert_refused(convert(tmp_path / "official.pth", tmp_path / "out.onnx"), "is a .pth file")
    for config in ("yolact_modern_shapes", "yolact_hard_shapes"):
        model = build(config, "MODEL.YOLACT.CRITERION", "ComposedCriterion",
                      "MODEL.YOLACT.CLS_LOSS_TYPE", "bce")  # fmt: skip
        torch.save(model.state_dict(), tmp_path / "modern.pth")
        done = convert(tmp_path / "modern.pth", tmp_path / "out.pth")
        assert_refused(done, "8 classes", "without a background class")
    assert not list(tmp_path.glob("out.*"))
