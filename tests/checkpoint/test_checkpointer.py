"""Loading checkpoints of this project, of the authors, of backbones and of other models."""

import os
import pickle
import shutil

import pytest
import torch
from checkpoints import CONFIGS, backbone_of, build, official, refused, save
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from plain import assert_equal
from torch import nn
from torchvision.models import resnet50

from yolact_d2.checkpoint import (
    CheckpointMismatch,
    SafeCheckpointer,
    YOLACTCheckpointer,
    check_weights_exist,
    from_official,
    read_state_dict,
    to_official,
)
from yolact_d2.checkpoint.names import without_prefix

SMALL = (
    "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.RES2_OUT_CHANNELS 32 "
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.FPN.OUT_CHANNELS 16 MODEL.YOLACT.HEAD_CONV_DIM 16"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_published_checkpoint_fills_every_tensor(tmp_path, name):
    theirs = official(name)
    model = build(CONFIGS[name])
    assert str(model.load_state_dict(theirs)) == "<All keys matched successfully>"
    assert_equal(model.state_dict(), from_official(theirs))
    YOLACTCheckpointer(model).load(save(tmp_path, theirs))
    assert_equal(model.state_dict(), from_official(theirs))


def small():
    """A small model with random tensors."""
    model = build("yolact_shapes", *SMALL.split())
    random = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=random))
    return model


def test_stock_checkpointer_and_torch_take_the_authors_names(tmp_path):
    model = small()
    ours = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = to_official(ours)
    for content in (
        theirs,
        {"model": theirs},
        {f"module.{key}": value for key, value in theirs.items()},
    ):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        DetectionCheckpointer(model).load(save(tmp_path, content))
        assert_equal(model.state_dict(), ours)
    wrapped = nn.ModuleDict({"detector": model})
    wrapped.load_state_dict({f"detector.{key}": value for key, value in theirs.items()})

    # The contract of torch: what is missing is returned, or raised where `strict` asks for it.
    missing = model.load_state_dict({}, strict=False).missing_keys
    assert set(missing) == {key for key in ours if not key.endswith("num_batches_tracked")}
    del theirs["proto_net.8.bias"]
    result = model.load_state_dict({**theirs, "other": torch.zeros(1)}, strict=False)
    assert result.missing_keys == ["protonet.upsampled_conv.bias"]
    assert result.unexpected_keys == ["other"]
    with pytest.raises(RuntimeError, match="protonet.upsampled_conv.bias"):
        model.load_state_dict(theirs)


@pytest.mark.parametrize(
    "key, prefix",
    [
        ("state_dict", "model."),  # Lightning
        ("state_dict", "module."),
        ("state_dict", ""),
        ("model_state_dict", "module._orig_mod."),
        ("net", "net.yolact."),
        ("weights", "module."),
        ("ema", "module."),
        ("model", "_orig_mod."),
        (None, "model."),
    ],
)
def test_weights_under_the_words_and_prefixes_of_other_programs_load(tmp_path, key, prefix):
    ours = small().state_dict()
    for tensors in (ours, to_official(ours)):
        named = {prefix + k: v for k, v in tensors.items()}
        content = {key: named, "epoch": 3, "optimizer_states": [{"state": {}}]} if key else named
        path = save(tmp_path, content, "epoch=3-step=400.ckpt")
        for load in ("load", "warm_start"):
            model = build("yolact_shapes", *SMALL.split())
            getattr(YOLACTCheckpointer(model), load)(path)
            assert_equal(model.state_dict(), ours)
        # As tools/convert_weights.py reads it.
        assert_equal(from_official(without_prefix(read_state_dict(path))), ours)


def test_prefixes_are_kept_where_no_known_names_follow(tmp_path):
    for tensors in (
        {"model.a.weight": torch.zeros(1), "model.b": torch.zeros(1)},
        {},
    ):
        assert list(without_prefix(tensors)) == list(tensors)
    for prefix in ("model.", "module."):
        beside_others = {f"{prefix}head.weight": torch.zeros(1), "n_averaged": torch.tensor(3)}
        assert list(without_prefix(beside_others)) == ["head.weight"]
    message = refused(build("yolact_shapes"), save(tmp_path, {"state_dict": {"a.b": weights()}}))
    assert "holds no dict of tensors" in message


def test_arrays_under_the_authors_names_load(tmp_path):
    ours = small().state_dict()
    theirs = to_official(ours)
    path = tmp_path / "some.pkl"
    arrays = {key: value.numpy() for key, value in theirs.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
    model = build("yolact_shapes", *SMALL.split())
    YOLACTCheckpointer(model).load(str(path))
    assert_equal(model.state_dict(), ours)
    assert_equal(read_state_dict(str(path)), theirs)


def test_checkpoint_of_version_1_loads(tmp_path):
    ours = small().state_dict()
    theirs = {k: v for k, v in to_official(ours).items() if "num_batches" not in k}
    theirs["backbone.layer1.0.conv1.weight"] = torch.zeros(1)
    theirs["fpn.downsample_layers.2.weight"] = torch.zeros(1)
    model = build("yolact_shapes", *SMALL.split())
    YOLACTCheckpointer(model).load(save(tmp_path, theirs))
    assert_equal(model.state_dict(), ours)


@pytest.mark.parametrize("name", ["yolact_resnet50", "yolact_darknet53"])
def test_backbone_file_of_the_authors_fills_the_backbone_alone(tmp_path, name):
    theirs = official(name)
    plain = {**backbone_of(theirs), "fc.weight": torch.zeros(1000, 2048)}
    model = build(CONFIGS[name])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = save(tmp_path, plain)
    YOLACTCheckpointer(model).warm_start(path)
    backbone = {k: v for k, v in from_official(theirs).items() if ".bottom_up." in k}
    assert_equal(model.state_dict(), {**before, **backbone})
    # A model that predicts needs more than a backbone.
    assert "missing: backbone.fpn_" in refused(model, path, warm_start=False)


@pytest.fixture(scope="module")
def torchvision_resnet():
    """torchvision's ResNet-50 in evaluation mode, with statistics that matter."""
    model = resnet50(weights=None).eval()
    random = torch.Generator().manual_seed(3)
    for key, value in model.state_dict().items():
        if (".bn" in key or key.startswith("bn1") or "downsample.1" in key) and "num_b" not in key:
            value.copy_(torch.rand(value.shape, generator=random) * 0.5 + 0.5)
    return model


def test_torchvisions_resnet_computes_the_same_here(tmp_path, torchvision_resnet):
    t = torchvision_resnet
    path = save(tmp_path, t.state_dict(), "resnet50-0676ba61.pth")
    model = build("yolact_R_50_FPN_550")
    YOLACTCheckpointer(model).warm_start(path)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        got = model.backbone.bottom_up.eval()(image)
        expected = t.layer1(t.maxpool(t.relu(t.bn1(t.conv1(image)))))
        for level, layer in (("res3", t.layer2), ("res4", t.layer3), ("res5", t.layer4)):
            expected = layer(expected)
            assert expected.std() > 0
            torch.testing.assert_close(got[level], expected, rtol=1e-4, atol=1e-4)


def test_deformable_blocks_start_from_an_ordinary_backbone(tmp_path, torchvision_resnet):
    theirs = torchvision_resnet.state_dict()
    model = build("yolact_plus_R_50_FPN_550")
    YOLACTCheckpointer(model).warm_start(save(tmp_path, theirs))
    block = model.backbone.bottom_up.res4[1]
    assert torch.equal(block.conv2.weight, theirs["layer3.1.conv2.weight"])
    assert torch.equal(block.conv2.norm.running_var, theirs["layer3.1.bn2.running_var"])
    conv = block.conv2
    for zero in (conv.bias, conv.conv_offset_mask.weight, conv.conv_offset_mask.bias):
        assert not zero.any()


@pytest.mark.parametrize("statistics", [True, False])
def test_backbone_of_detectron2s_model_zoo(tmp_path, statistics):
    """A .pkl whose names Detectron2 matches by their ends, like the zoo's torchvision/R-50.pkl, or
    like its MSRA/R-50.pkl, which has no statistics of batch norm."""
    model = build("yolact_shapes", *SMALL.split())
    arrays = {
        key.removeprefix("backbone.bottom_up."): value.numpy()
        for key, value in small().state_dict().items()
        if ".bottom_up." in key and "num_batches" not in key
        if statistics or ".running_" not in key
    }
    content = {
        "model": {**arrays, "stem.fc.weight": arrays["res5.2.conv3.norm.weight"]},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    YOLACTCheckpointer(model).warm_start(str(tmp_path / "R-50.pkl"))
    got = model.backbone.bottom_up.state_dict()
    for key, value in arrays.items():
        assert torch.equal(got[key], torch.from_numpy(value)), key


def test_fine_tuning_initialises_the_class_layers_anew(tmp_path, caplog):
    theirs = official("yolact_plus_resnet50")
    model = build("yolact_plus_R_50_FPN_550", "MODEL.YOLACT.NUM_CLASSES", 3)
    path = save(tmp_path, theirs)
    message = refused(model, path)
    assert "80 classes" in message and "3 classes" in message and "NEW_CLASSES" in message
    YOLACTCheckpointer(model, new_classes=True).warm_start(path)
    layers = ("head.cls_score", "sem_seg_conv", "mask_iou_head.predictor")
    fresh = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    for key, value in from_official(theirs).items():
        assert (key in fresh) or torch.equal(model.state_dict()[key], value), key
    assert all(f"Skip loading parameter '{key}'" in caplog.text for key in fresh)
    # Only training may start like this.
    assert "NEW_CLASSES" in refused(model, path, warm_start=False, new_classes=True)


@pytest.mark.parametrize(
    "key, value, skipped",
    [
        ("MODEL.YOLACT.PROTONET.NUM_PROTOTYPES", 8, "protonet.prototypes.weight"),
        ("MODEL.FPN.OUT_CHANNELS", 32, "backbone.fpn_lateral3.weight"),
        ("MODEL.YOLACT.HEAD_CONV_DIM", 64, "head.cls_score.weight"),
    ],
)
def test_warm_start_with_other_widths_loads_what_fits(tmp_path, caplog, key, value, skipped):
    before = build("yolact_shapes").state_dict()
    model = build("yolact_shapes", key, value)
    path = save(tmp_path, {"model": before})
    YOLACTCheckpointer(model).warm_start(path)
    assert f"Skip loading parameter '{skipped}'" in caplog.text
    num_loaded = 0
    for name, tensor in model.state_dict().items():
        if tensor.shape == before[name].shape:
            assert torch.equal(tensor, before[name])
            num_loaded += 1
    assert num_loaded > 100
    assert skipped in refused(model, path, warm_start=False)


class Small(nn.Module):
    """A model of another project."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)


def weights():
    random = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 3, 1, 1), "conv.bias": (4,)}
    return {key: torch.rand(shape, generator=random) for key, shape in shapes.items()}


def arrays():
    return {key: value.numpy() for key, value in weights().items()}


@pytest.fixture
def web(tmp_path):
    """A folder with the files of https://example.org."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Web(PathHandler):
        def _get_supported_prefixes(self):
            return ["https://example.org/"]

        def _get_local_path(self, path, force=False, **kwargs):
            local = tmp_path / "cache"
            local.mkdir(exist_ok=True)
            return shutil.copy(folder / os.path.basename(path), local)

        def _isfile(self, path, **kwargs):
            return (folder / os.path.basename(path)).is_file()

    PathManager.register_handler(Web())
    yield folder
    del PathManager._path_handlers["https://example.org/"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("plain.pth", weights()),
        ("saved.pth", {"model": weights(), "iteration": 3}),
        ("parallel.pth", {"model": {f"module.{k}": v for k, v in weights().items()}}),
        ("zoo.pkl", {"model": arrays(), "__author__": "x"}),
        ("caffe2.pkl", {"blobs": dict(zip(["conv_w", "conv_b"], arrays().values()))}),
    ],
)
def test_other_models_load_as_with_detectron2(tmp_path, web, name, content):
    for folder, prefix in ((tmp_path, f"{tmp_path}/"), (web, "https://example.org/")):
        if name.endswith(".pkl"):
            (folder / name).write_bytes(pickle.dumps(content, 2))
        else:
            torch.save(content, folder / name)
        results = []
        for kind in (SafeCheckpointer, DetectionCheckpointer):
            model = Small()
            results.append(kind(model).load(prefix + name))
            assert_equal(model.state_dict(), weights())
        assert results[0] == results[1]


def test_misfit_names_the_url_and_the_checkpointer_works_afterwards(web, tmp_path):
    model = build("yolact_shapes")
    torch.save(weights(), web / "some.pth")
    checkpointer = YOLACTCheckpointer(model)
    for url in ("https://example.org/some.pth", "https://example.org/some.pth"):
        with pytest.raises(CheckpointMismatch, match=f"{url}: this is no"):
            checkpointer.load(url)
    checkpointer.load(save(tmp_path, model.state_dict()))


def test_files_of_pycls_are_refused(tmp_path):
    path = save(tmp_path, {"model_state": weights()}, "some.pyth")
    with pytest.raises(CheckpointMismatch, match="some.pyth is a file of pycls"):
        SafeCheckpointer(Small()).load(path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS: there is no file '.*nowhere.pth'"):
        check_weights_exist(str(tmp_path / "nowhere.pth"))
    for weights in ("", "https://example.org/some.pth", save(tmp_path, {})):
        check_weights_exist(weights)
