import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]


def convert(*args):
    program = TESTS.parent / "tools" / "convert_weights.py"
    return subprocess.run(
        [sys.executable, str(program), *map(str, args)], capture_output=True, text=True
    )


@pytest.fixture
def official(tmp_path):
    shapes = json.loads((TESTS / "data" / "yolact_resnet50_pascal.keys.json").read_text())
    tensors = {k: torch.rand(shape) if shape else torch.tensor(7) for k, shape in shapes.items()}
    torch.save(tensors, tmp_path / "official.pth")
    return tensors


def test_there_and_back(tmp_path, official):
    there = convert(tmp_path / "official.pth", tmp_path / "ours.pth")
    assert there.returncode == 0, there.stderr
    assert "yolact_resnet50_pascal" in there.stdout
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert "head.cls_score.weight" in ours

    back = convert(tmp_path / "ours.pth", tmp_path / "back.pth")
    assert back.returncode == 0, back.stderr
    again = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(again) == list(official)
    assert all(torch.equal(again[key], value) for key, value in official.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "official.pth", "ours.pth"]


def test_bad_input_is_named_and_nothing_written(tmp_path):
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("text")
    for name in ("other.pth", "text.pth", "missing.pth"):
        done = convert(tmp_path / name, tmp_path / "out.pth")
        assert done.returncode != 0
        assert str(tmp_path / name) in done.stderr
        assert not (tmp_path / "out.pth").exists()


def test_what_it_does_not_know_is_refused(tmp_path, official):
    official["maskiou_net.0.weight"] = torch.zeros(8, 1, 3, 3)
    torch.save(official, tmp_path / "plus.pth")
    done = convert(tmp_path / "plus.pth", tmp_path / "out.pth")
    assert done.returncode != 0
    assert "maskiou_net.0.weight" in done.stderr
    assert not (tmp_path / "out.pth").exists()
