"""Which checkpoints a model takes, and what it says of the others."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torchvision.models import resnet50

from yolact_d2 import load_config
from yolact_d2.checkpoint import CheckpointMismatch, fit_state_dict, from_official

TESTS = Path(__file__).resolve().parents[1]
CONFIGS = {
    "yolact_R_50_FPN_550": "yolact_resnet50",
    "yolact_R_101_FPN_550": "yolact_base",
    "yolact_R_101_FPN_400": "yolact_base",
    "yolact_R_101_FPN_700": "yolact_base",
    "yolact_darknet53_FPN_550": "yolact_darknet53",
    "yolact_R_50_FPN_550_pascal": "yolact_resnet50_pascal",
    "yolact_plus_R_50_FPN_550": "yolact_plus_resnet50",
    "yolact_plus_R_101_FPN_550": "yolact_plus_base",
}


def official(name):
    shapes = json.loads((TESTS / "data" / f"{name}.keys.json").read_text())
    random = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(shape, generator=random) if shape else torch.tensor(7)
        for key, shape in shapes.items()
    }


def config(name, weights="", *opts):
    path = str(TESTS.parent / "configs" / f"{name}.yaml")
    return load_config(path, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights), *opts])


def saved(tmp_path, content, name="some.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def loaded(cfg):
    """A model as DefaultPredictor and the trainer build it."""
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def refused(name, path, *opts):
    with pytest.raises(CheckpointMismatch) as error:
        build_model(config(name, path, *opts))
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_official_checkpoint_fills_every_tensor(tmp_path, name):
    theirs = official(CONFIGS[name])
    model = loaded(config(name, saved(tmp_path, theirs)))
    expected = from_official(theirs)
    got = model.state_dict()
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_old_checkpoint_without_batch_counts_loads(tmp_path):
    theirs = {k: v for k, v in official("yolact_resnet50").items() if "num_batches" not in k}
    theirs["backbone.layer1.0.conv1.weight"] = torch.zeros(1)
    theirs["fpn.downsample_layers.2.weight"] = torch.zeros(1)
    model = loaded(config("yolact_R_50_FPN_550", saved(tmp_path, theirs)))
    assert torch.equal(model.protonet.prototypes.weight, theirs["proto_net.10.weight"])


def test_own_checkpoint_goes_round(tmp_path):
    model = build_model(config("yolact_shapes"))
    DetectionCheckpointer(model, str(tmp_path)).save("own", iteration=3)
    again = loaded(config("yolact_shapes", tmp_path / "own.pth"))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("name", ["yolact_R_50_FPN_550", "yolact_darknet53_FPN_550"])
def test_backbone_file_fills_the_backbone_alone(tmp_path, name):
    theirs = official(CONFIGS[name])
    plain = {k[len("backbone.") :]: v for k, v in theirs.items() if k.startswith("backbone.")}
    plain["fc.weight"] = torch.zeros(1000, 2048)
    model = loaded(config(name, saved(tmp_path, plain)))
    expected = {k: v for k, v in from_official(theirs).items() if ".bottom_up." in k}
    got = model.state_dict()
    assert expected and all(torch.equal(got[key], value) for key, value in expected.items())
    assert not torch.equal(model.protonet.prototypes.weight, theirs["proto_net.10.weight"])


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's ResNet-50, in evaluation mode, with weights that all matter."""
    model = resnet50(weights=None).eval()
    random = torch.Generator().manual_seed(3)
    for key, value in model.state_dict().items():
        if ".bn" in key or key.startswith("bn1") or "downsample.1" in key:
            if not key.endswith("num_batches_tracked"):
                value.copy_(torch.rand(value.shape, generator=random) * 0.5 + 0.5)
    return model


def torchvision_name(key):
    """Of the tensor that is `key` in Detectron2's ResNet."""
    for stage in range(1, 5):
        key = key.replace(f"res{stage + 1}.", f"layer{stage}.")
    for n in (1, 2, 3):
        key = key.replace(f"conv{n}.norm", f"bn{n}")
    key = key.replace("shortcut.norm", "downsample.1").replace("shortcut.", "downsample.0.")
    return key.replace("stem.", "")


def test_torchvisions_resnet_computes_the_same_here(tmp_path, torchvisions):
    path = saved(tmp_path, torchvisions.state_dict(), "resnet50-0676ba61.pth")
    bottom_up = loaded(config("yolact_R_50_FPN_550", path)).backbone.bottom_up.eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        got = bottom_up(image)
        t = torchvisions
        expected = t.layer1(t.maxpool(t.relu(t.bn1(t.conv1(image)))))
        for level, layer in (("res3", t.layer2), ("res4", t.layer3), ("res5", t.layer4)):
            expected = layer(expected)
            assert expected.std() > 0
            torch.testing.assert_close(got[level], expected, rtol=1e-4, atol=1e-4)


def test_torchvisions_resnet_in_yolact_plus(tmp_path, torchvisions):
    theirs = torchvisions.state_dict()
    path = saved(tmp_path, theirs, "resnet50-0676ba61.pth")
    got = loaded(config("yolact_plus_R_50_FPN_550", path)).backbone.bottom_up.state_dict()
    found = set()
    for key, value in got.items():
        if ".conv_offset_mask." in key or key.endswith("conv2.bias"):
            assert not value.any()
        else:
            assert torch.equal(value, theirs[torchvision_name(key)]), key
            found.add(torchvision_name(key))
    assert found == {key for key in theirs if not key.startswith("fc.")}


def test_fine_tuning_leaves_the_class_layers_fresh(tmp_path, caplog):
    theirs = official("yolact_resnet50")
    opts = ["MODEL.YOLACT.NUM_CLASSES", 3, "MODEL.YOLACT.NEW_CLASSES", True]
    model = loaded(config("yolact_R_50_FPN_550", saved(tmp_path, theirs), *opts))
    fresh = [f"{m}.{p}" for m in ("head.cls_score", "sem_seg_conv") for p in ("weight", "bias")]
    for key, value in from_official(theirs).items():
        if key not in fresh:
            assert torch.equal(model.state_dict()[key], value), key
    assert model.head.cls_score.weight.shape[0] == 3 * 4
    message = next(r.getMessage() for r in caplog.records if "Left fresh" in r.getMessage())
    assert all(key in message for key in fresh)


@pytest.mark.parametrize("name", ["own.pth", "own.pt"])
def test_fine_tuning_from_an_own_checkpoint(tmp_path, name, caplog):
    """From which Detectron2 itself takes what has another shape."""
    before = build_model(config("yolact_shapes"))
    path = saved(tmp_path, {"model": before.state_dict()}, name)
    opts = ["MODEL.YOLACT.NUM_CLASSES", 9]
    message = refused("yolact_shapes", path, *opts)
    assert "4 classes" in message and "9 classes" in message and "NEW_CLASSES" in message
    model = loaded(config("yolact_shapes", path, *opts, "MODEL.YOLACT.NEW_CLASSES", True))
    assert torch.equal(model.head.conv.weight, before.head.conv.weight)
    assert model.sem_seg_conv.bias.shape == (9,)
    assert "Left fresh" in caplog.text


def test_own_checkpoint_without_its_head_is_no_backbone(tmp_path):
    model = build_model(config("yolact_shapes"))
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    assert "missing: head." in refused("yolact_shapes", saved(tmp_path, tensors))


@pytest.mark.parametrize("change", ["deleted", "reshaped"])
def test_any_wrong_tensor_is_a_mismatch(change):
    model = build_model(config("yolact_R_50_FPN_550_pascal")).state_dict()
    theirs = official("yolact_resnet50_pascal")
    for key in theirs:
        if key.endswith("num_batches_tracked"):
            continue
        wrong = dict(theirs)
        if change == "deleted":
            del wrong[key]
        else:
            wrong[key] = torch.zeros(7)
        with pytest.raises(CheckpointMismatch):
            fit_state_dict(wrong, model, new_classes=False)


def test_classifier_like_names_of_the_model_are_kept():
    like_a_classifier = "backbone.bottom_up.mlp.fc1.weight"
    model = {like_a_classifier: torch.zeros(2), "head.conv.weight": torch.zeros(1)}
    checkpoint = {like_a_classifier: torch.ones(2), "fc.weight": torch.ones(9)}
    fitted = fit_state_dict(checkpoint, model, new_classes=False)
    assert list(fitted) == [like_a_classifier]


def test_backbone_without_statistics_loads(tmp_path):
    """Like Detectron2's MSRA models."""
    model = build_model(config("yolact_R_50_FPN_550"))
    tensors = {
        key: value
        for key, value in model.state_dict().items()
        if ".bottom_up." in key and ".running_" not in key and "num_batches" not in key
    }
    loaded(config("yolact_R_50_FPN_550", saved(tmp_path, tensors)))


def test_yolact_and_yolact_plus_are_told_apart(tmp_path):
    plus, plain = official("yolact_plus_resnet50"), official("yolact_resnet50")
    message = refused("yolact_R_50_FPN_550", saved(tmp_path, plus))
    assert (
        "this is yolact_plus_resnet50 (YOLACT++ with ResNet-50, 80 classes, 9 anchors a cell, 13 "
        "deformable blocks, mask re-scoring)" in message
    )
    message = refused("yolact_plus_R_50_FPN_550", saved(tmp_path, plain))
    assert "this is yolact_resnet50 (" in message
    assert "the config's model is yolact_plus_resnet50 (" in message
    message = refused("yolact_plus_R_101_FPN_550", saved(tmp_path, plus))
    assert "the config's model is yolact_plus_base (" in message


def test_interval_that_differs_is_refused(tmp_path):
    path = saved(tmp_path, official("yolact_plus_base"))
    message = refused("yolact_plus_R_101_FPN_550", path, "MODEL.RESNETS.DEFORM_INTERVAL", 1)
    assert "this is yolact_plus_base (" in message
    assert "the config's model is YOLACT++ with ResNet-101" in message
    assert "11 deformable blocks" in message and "30 deformable blocks" in message
    assert "missing: backbone.bottom_up.res3.1.conv2.bias" in message


def test_deformable_blocks_start_from_an_ordinary_backbone(tmp_path):
    theirs = official("yolact_resnet50")
    plain = {k[len("backbone.") :]: v for k, v in theirs.items() if k.startswith("backbone.")}
    model = loaded(config("yolact_plus_R_50_FPN_550", saved(tmp_path, plain)))
    conv = model.backbone.bottom_up.res4[1].conv2
    assert torch.equal(conv.weight, plain["layers.2.1.conv2.weight"])
    for zero in (conv.bias, conv.conv_offset_mask.weight, conv.conv_offset_mask.bias):
        assert not zero.any()


def test_deformable_backbone_must_be_whole(tmp_path):
    theirs = official("yolact_plus_resnet50")
    plain = {k[len("backbone.") :]: v for k, v in theirs.items() if k.startswith("backbone.")}
    del plain["layers.2.1.conv2.conv_offset_mask.bias"]
    message = refused("yolact_plus_R_50_FPN_550", saved(tmp_path, plain))
    assert "missing: backbone.bottom_up.res4.1.conv2.conv_offset_mask.bias" in message


@pytest.mark.parametrize("missing", ["conv2.weight", "bn2.bias", "conv3.weight"])
def test_ordinary_backbone_must_be_whole(tmp_path, missing):
    theirs = official("yolact_resnet50")
    plain = {k[len("backbone.") :]: v for k, v in theirs.items() if k.startswith("backbone.")}
    del plain[f"layers.2.1.{missing}"]
    message = refused("yolact_plus_R_50_FPN_550", saved(tmp_path, plain))
    assert "missing: backbone.bottom_up.res4.1.conv" in message


def test_fine_tuning_yolact_plus_leaves_the_predicted_ious_fresh_too(tmp_path, caplog):
    path = saved(tmp_path, official("yolact_plus_resnet50"))
    opts = ["MODEL.YOLACT.NUM_CLASSES", 3, "MODEL.YOLACT.NEW_CLASSES", True]
    model = loaded(config("yolact_plus_R_50_FPN_550", path, *opts))
    assert model.mask_iou_head.predictor.weight.shape[0] == 3
    assert "mask_iou_head.predictor.weight" in caplog.text


def test_legacy_format_loads_and_is_refused_when_cut(tmp_path):
    path = tmp_path / "legacy.pth"
    torch.save(official("yolact_resnet50"), path, _use_new_zipfile_serialization=False)
    loaded(config("yolact_R_50_FPN_550", path))
    os.truncate(path, path.stat().st_size // 2)
    assert "truncated or not a checkpoint" in refused("yolact_R_50_FPN_550", path)


def test_wrong_number_of_classes_is_refused_with_the_two_ways_out(tmp_path):
    path = saved(tmp_path, official("yolact_resnet50_pascal"))
    message = refused("yolact_R_50_FPN_550", path)
    assert "this is yolact_resnet50_pascal (YOLACT with ResNet-50, 20 classes" in message
    assert "MODEL.YOLACT.NEW_CLASSES" in message and "MODEL.YOLACT.NUM_CLASSES" in message
    assert "head.cls_score.weight (63, 256, 3, 3) for (243, 256, 3, 3)" in message


def test_another_backbone_is_refused(tmp_path):
    path = saved(tmp_path, official("yolact_darknet53"))
    message = refused("yolact_R_50_FPN_550", path)
    assert "this is yolact_darknet53 (" in message
    assert "the config's model is yolact_resnet50 (" in message
    assert "missing: backbone.bottom_up.stem.conv1.weight" in message
    assert "unexpected: backbone.bottom_up" in message and "more" in message


def test_resnet_of_another_depth_is_refused(tmp_path):
    theirs = official("yolact_base")
    path = saved(tmp_path, theirs)
    assert "this is yolact_base" in refused("yolact_R_50_FPN_550", path)
    plain = {k[len("backbone.") :]: v for k, v in theirs.items() if k.startswith("backbone.")}
    path = saved(tmp_path, plain, "backbone.pth")
    assert "this is a bare ResNet-101" in refused("yolact_R_50_FPN_550", path)


@pytest.mark.parametrize("missing", ["proto_net.8.bias", "backbone.layers.3.2.conv3.weight"])
def test_incomplete_checkpoint_is_refused(tmp_path, missing):
    theirs = official("yolact_resnet50")
    del theirs[missing]
    ours = next(iter(from_official({missing: torch.zeros(1)})))
    assert f"missing: {ours}" in refused("yolact_R_50_FPN_550", saved(tmp_path, theirs))


def test_checkpoint_of_another_project_is_refused(tmp_path):
    other = {"proposal_generator.anchor_deltas.weight": torch.zeros(4)}
    path = saved(tmp_path, {"model": other})
    message = refused("yolact_R_50_FPN_550", path)
    assert "this is no checkpoint of YOLACT (it has proposal_generator)" in message
    assert "unexpected: proposal_generator.anchor_deltas.weight" in message


def test_truncated_file_is_refused(tmp_path):
    path = saved(tmp_path, official("yolact_resnet50"))
    os.truncate(path, path.stat().st_size // 2)
    assert "truncated or not a checkpoint" in refused("yolact_R_50_FPN_550", path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 but no archive"])
def test_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "some.pth").write_bytes(content)
    assert "not a checkpoint" in refused("yolact_R_50_FPN_550", tmp_path / "some.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, 7])
def test_file_without_tensors_is_refused(tmp_path, content):
    message = refused("yolact_R_50_FPN_550", saved(tmp_path, content))
    assert "it holds no dict of tensors" in message


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_file_cannot_run_code(tmp_path):
    trap = tmp_path / "trap"
    path = saved(tmp_path, {"model": Malicious(str(trap))})
    assert "not loaded from strangers" in refused("yolact_R_50_FPN_550", path)
    assert not trap.exists()


def test_state_dict_that_does_not_fit_is_refused_without_a_file():
    model = build_model(config("yolact_shapes"))
    with pytest.raises(CheckpointMismatch, match="missing: .*backbone"):
        model.load_state_dict({}, strict=False)


def test_backbone_of_detectron2s_model_zoo(tmp_path):
    """A .pkl whose names Detectron2 matches by their ends, like the zoo's torchvision/R-50.pkl."""
    model = build_model(config("yolact_R_50_FPN_550"))
    prefix = "backbone.bottom_up."
    random = torch.Generator().manual_seed(2)
    arrays = {
        key[len(prefix) :]: torch.rand(value.shape, generator=random).numpy()
        for key, value in model.state_dict().items()
        if key.startswith(prefix) and not key.endswith("num_batches_tracked")
    }
    classifier = {"stem.fc.weight": arrays["res5.2.conv3.norm.weight"]}
    content = {
        "model": {**arrays, **classifier},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    with open(tmp_path / "R-50.pkl", "wb") as file:
        pickle.dump(content, file)
    got = loaded(config("yolact_R_50_FPN_550", tmp_path / "R-50.pkl")).state_dict()
    for key, value in arrays.items():
        assert torch.equal(got[prefix + key], torch.from_numpy(value)), key
