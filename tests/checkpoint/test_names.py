"""Official names to ours and back."""

import pytest
import torch
from checkpoints import CONFIGS, official

from yolact_d2.checkpoint import from_official, to_official
from yolact_d2.checkpoint.names import is_official


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
