"""Official names to ours and back."""

import pytest
import torch
from checkpoints import CONFIGS, EMBEDMASK_CONFIGS, build, official
from plain import assert_equal

from yolact_d2.checkpoint import from_official, to_official, translate
from yolact_d2.checkpoint.names import is_official


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_the_same_to_the_byte(name):
    before = official(name)
    ours = from_official(before)
    after = to_official(ours)
    assert list(after) == list(before)
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert torch.equal(after[key], value), key
    assert is_official(before) and not is_official(ours) and len(ours) == len(before)
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


def test_class_layer_is_not_translated_without_the_number_of_anchors():
    """Its background cannot be moved then, and every class would be off by one."""
    theirs = official("yolact_resnet50_pascal")
    del theirs["prediction_layers.0.bbox_layer.bias"]
    ours = from_official(theirs)
    for leaf in ("weight", "bias"):
        key = f"prediction_layers.0.conf_layer.{leaf}"
        assert torch.equal(ours[key], theirs[key]) and f"head.cls_score.{leaf}" not in ours


def test_part_of_an_official_state_dict_is_translated():
    theirs = official("yolact_plus_resnet50")
    ours = from_official(theirs)
    for key, name in zip(theirs, ours):
        if "conf_layer" not in key:
            assert_equal(translate({key: theirs[key]}), {name: ours[name]})


def test_layers_of_a_subclass_keep_their_names():
    extra = {f"{name}.weight": torch.rand(2) for name in ("layers.0", "layer1.0.conv1", "module")}
    ours = {**build("yolact_shapes").state_dict(), **extra}
    assert_equal(translate(ours), ours)
    assert_equal(translate({f"module.{key}": value for key, value in ours.items()}), ours)


@pytest.mark.parametrize("name", EMBEDMASK_CONFIGS)
def test_embedmask_there_and_back(name):
    """Variances change by Detectron2's epsilon, everything else stays."""
    before = official(name)
    ours = from_official(before)
    after = to_official(ours)
    assert list(after) == list(before) and is_official(before) and not is_official(ours)
    model = build(EMBEDMASK_CONFIGS[name]).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.items()}
    for (key, theirs), value in zip(before.items(), ours.values()):
        if key.endswith("running_var"):
            assert torch.equal(value, theirs - 1e-5)
            torch.testing.assert_close(after[key], theirs)
        else:
            assert torch.equal(value, theirs) and torch.equal(after[key], theirs)
    for wrapped in ({f"module.{k}": v for k, v in before.items()}, ours):
        assert_equal(translate(wrapped), ours)
