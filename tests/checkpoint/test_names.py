"""Official names to ours and back."""

import pytest
import torch
from checkpoints import CONFIGS, official

from yolact_d2.checkpoint import from_official, to_official
from yolact_d2.checkpoint.names import from_plain_backbone, is_official, is_plain_backbone


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_the_same_to_the_byte(name):
    before = official(name)
    after = to_official(from_official(before))
    assert list(after) == list(before)
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert torch.equal(after[key], value), key


@pytest.mark.parametrize("name", CONFIGS)
def test_no_official_name_is_left(name):
    theirs = official(name)
    assert is_official(theirs)
    ours = from_official(theirs)
    assert len(ours) == len(theirs)
    assert not is_official(ours)
    prefixes = ("backbone.bottom_up.", "backbone.fpn_", "backbone.top_block.", "protonet.", "head.")
    assert all(key.startswith((*prefixes, "sem_seg_conv.", "mask_iou_head.")) for key in ours)


def test_background_moves_from_first_to_last_for_every_anchor():
    theirs = official("yolact_resnet50_pascal")
    before = theirs["prediction_layers.0.conf_layer.weight"]
    after = from_official(theirs)["head.cls_score.weight"]
    for anchor in range(3):
        first = anchor * 21
        assert torch.equal(after[first + 20], before[first])
        for c in range(20):
            assert torch.equal(after[first + c], before[first + 1 + c])


def test_superfluous_entries_of_version_1_are_left_out():
    theirs = official("yolact_resnet50")
    old = {
        **theirs,
        "backbone.layer1.0.conv1.weight": torch.zeros(1),
        "fpn.downsample_layers.2.weight": torch.zeros(1),
        "fpn.downsample_layers.4.bias": torch.zeros(1),
    }
    assert list(from_official(old)) == list(from_official(theirs))


@pytest.mark.parametrize("name", ["yolact_resnet50", "yolact_base"])
def test_torchvision_backbone(name):
    theirs = {k: v for k, v in official(name).items() if k.startswith("backbone.")}
    plain = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    for key, value in theirs.items():
        key = key[len("backbone.") :]
        if key.startswith("layers."):
            key = f"layer{int(key[7]) + 1}{key[8:]}"
        plain[key] = value
    assert "layer4.2.bn3.running_var" in plain
    assert is_plain_backbone(plain) and not is_official(plain)
    expected = from_official(theirs)
    got = from_plain_backbone(plain)
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_darknet_backbone_of_the_authors():
    theirs = official("yolact_darknet53")
    theirs = {k: v for k, v in theirs.items() if k.startswith("backbone.")}
    plain = {key[len("backbone.") :]: value for key, value in theirs.items()}
    assert is_plain_backbone(plain)
    got, expected = from_plain_backbone(plain), from_official(theirs)
    assert list(got) == list(expected)
