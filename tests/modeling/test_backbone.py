"""The pyramid and DarkNet-53 against plain functions, and the rule about batch norm."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from yolact_d2 import add_yolact_config
from yolact_d2.modeling import DarkNet, build_darknet53_backbone
from yolact_d2.modeling.backbone.batch_norm import fixed_statistics

REPO = Path(__file__).resolve().parents[2]
RESNET, DARKNET = "build_yolact_resnet_fpn_backbone", "build_yolact_darknet53_fpn_backbone"
LEVELS = ["p3", "p4", "p5", "p6", "p7"]


def _cfg(name=RESNET, images=8, depth=18):
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / "Base-YOLACT.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    if name == DARKNET:
        cfg.MODEL.FPN.IN_FEATURES = ["dark3", "dark4", "dark5"]
    cfg.SOLVER.IMS_PER_BATCH = images
    return cfg


def _build(*args, **kwargs):
    torch.manual_seed(0)
    return build_backbone(_cfg(*args, **kwargs))


def _batch_norms(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def _randomize(module):
    """Biases, and the statistics of batch norm, that show where they are left out."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.5, 1.5)
        if getattr(layer, "bias", None) is not None:
            layer.bias.normal_(std=0.5)


@torch.no_grad()
def test_level_sizes_at_550():
    features = _build().eval()(torch.randn(1, 3, 550, 550))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        name: (1, 32, side, side) for name, side in zip(LEVELS, (69, 35, 18, 9, 5))
    }


@pytest.mark.parametrize("name", [RESNET, DARKNET])
@torch.no_grad()
def test_pyramid_equals_the_functions(name):
    fpn = _build(name).eval()
    _randomize(fpn)
    image = torch.randn(2, 3, 75, 170)
    c3, c4, c5 = (fpn.bottom_up(image)[stage] for stage in fpn.in_features)
    assert [c.shape[-2:] for c in (c3, c4, c5)] == [(10, 22), (5, 11), (3, 6)]

    def conv(x, layer, **kwargs):
        return F.conv2d(x, layer.weight, layer.bias, **kwargs)

    def up(x, like):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)

    m5 = conv(c5, fpn.fpn_lateral5)
    m4 = conv(c4, fpn.fpn_lateral4) + up(m5, c4)
    m3 = conv(c3, fpn.fpn_lateral3) + up(m4, c3)
    p3 = conv(m3, fpn.fpn_output3, padding=1).clamp(min=0)
    p4 = conv(m4, fpn.fpn_output4, padding=1).clamp(min=0)
    p5 = conv(m5, fpn.fpn_output5, padding=1).clamp(min=0)
    p6 = conv(p5, fpn.top_block.p6, stride=2, padding=1)
    p7 = conv(p6, fpn.top_block.p7, stride=2, padding=1)

    features = fpn(image)
    assert list(features) == LEVELS
    for level, expected in zip(LEVELS, (p3, p4, p5, p6, p7)):
        torch.testing.assert_close(features[level], expected, rtol=1e-5, atol=1e-5)
    assert min(p6.min(), p7.min()) < 0


def test_output_shape():
    fpn = _build()
    assert {name: (x.channels, x.stride) for name, x in fpn.output_shape().items()} == {
        name: (32, stride) for name, stride in zip(LEVELS, (8, 16, 32, 64, 128))
    }
    assert fpn.size_divisibility == 0


def test_pyramid_is_initialised_xavier_uniform_with_zero_biases():
    fpn = _build()
    layers = [*fpn.lateral_convs, *fpn.output_convs, fpn.top_block.p6, fpn.top_block.p7]
    assert len(layers) == 8
    for layer in layers:
        out_channels, in_channels, side, _ = layer.weight.shape
        bound = math.sqrt(6 / (side**2 * (in_channels + out_channels)))
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


@pytest.mark.parametrize("depth, blocks, kernels", [(18, 8, [3, 3]), (50, 16, [1, 3, 1])])
def test_stride_is_in_the_3x3_convolution(depth, blocks, kernels):
    resnet = _build(depth=depth).bottom_up
    strided = 0
    for block in [block for stage in resnet.stages for block in stage]:
        convs = [getattr(block, f"conv{i + 1}") for i in range(len(kernels))]
        assert [conv.kernel_size[0] for conv in convs] == kernels
        strides = {conv.kernel_size[0]: conv.stride[0] for conv in reversed(convs)}
        assert strides.get(1, 1) == 1
        strided += strides[3] == 2
        blocks -= 1
    assert (blocks, strided) == (0, 3)


def _is_frozen(fpn):
    norms = _batch_norms(fpn.bottom_up)
    affine = {parameter.requires_grad for norm in norms for parameter in norm.parameters()}
    assert len(affine) == 1
    return affine == {False}


def _statistics(module):
    return [buffer.clone() for norm in _batch_norms(module) for buffer in norm.buffers()]


def _train_step(fpn, images):
    """Whether each batch norm's statistics changed, and which affine parameters got a gradient."""
    fpn.train()
    fpn.zero_grad()
    before = _statistics(fpn)
    sum(x.square().mean() for x in fpn(torch.randn(images, 3, 64, 64)).values()).backward()
    changed = [not torch.equal(x, y) for x, y in zip(before, _statistics(fpn))]
    learned = [p.grad is not None for norm in _batch_norms(fpn) for p in norm.parameters()]
    return changed, learned


@pytest.mark.parametrize("images, frozen", [(1, True), (5, True), (6, False), (8, False)])
def test_frozen_from_the_start_when_steps_see_few_images(images, frozen):
    assert _is_frozen(_build(images=images)) is frozen


def test_images_of_a_step_are_shared_among_devices(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert _is_frozen(_build(images=10))
    assert not _is_frozen(_build(images=12))


def test_limit_is_configurable():
    cfg = _cfg(images=8)
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = 9
    assert _is_frozen(build_backbone(cfg))
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    assert not _is_frozen(build_backbone(cfg))


def test_a_step_of_enough_images_trains_batch_norm():
    changed, learned = _train_step(_build(images=6), 6)
    assert all(changed) and all(learned)


def test_where_steps_see_few_images_batch_norm_is_frozen_and_nothing_else():
    fpn = _build(images=2)
    changed, learned = _train_step(fpn, 2)
    assert not any(changed) and not any(learned)
    others = [p for m in fpn.modules() if isinstance(m, nn.Conv2d) for p in m.parameters(False)]
    assert others and all(p.grad is not None and p.requires_grad for p in others)


def test_a_single_step_of_few_images_keeps_the_statistics_and_freezes_nothing():
    fpn = _build(images=8)
    changed, _ = _train_step(fpn, 5)
    assert not any(changed)
    changed, learned = _train_step(fpn, 6)
    assert all(changed) and all(learned)


def test_batch_norm_stays_frozen_over_evaluations():
    fpn = _build(images=2)
    for _ in range(2):
        fpn.eval()
        changed, learned = _train_step(fpn, 2)
        assert not any(changed) and not any(learned)


@torch.no_grad()
def test_inference_with_one_image_does_not_freeze():
    fpn = _build(images=8).eval()
    fpn(torch.randn(1, 3, 64, 64))
    assert not _is_frozen(fpn)


def test_frozen_and_trained_models_have_the_same_checkpoints():
    frozen, trained = _build(images=2), _build(images=8)
    assert list(frozen.state_dict()) == list(trained.state_dict())
    _train_step(trained, 2)
    assert list(frozen.state_dict()) == list(trained.state_dict())


def test_fixed_statistics_concern_batch_norm_only_and_end():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    layers = module, module[0], module[1], module[2][0]
    module[1].eval()
    with pytest.raises(KeyError), fixed_statistics(module):
        assert [layer.training for layer in layers] == [True, True, False, False]
        raise KeyError
    assert [layer.training for layer in layers] == [True, True, False, True]


def test_unknown_stage_is_named_with_the_known_ones():
    cfg = _cfg(DARKNET)
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "dark4", "dark5"]
    with pytest.raises(ValueError, match=r"FPN.IN_FEATURES: no stage \['res3'\].*'dark3'"):
        build_backbone(cfg)


@pytest.mark.parametrize("name, depth", [(RESNET, 18), (RESNET, 50), (RESNET, 101), (DARKNET, 0)])
@torch.no_grad()
def test_magnitudes_from_scratch_with_frozen_batch_norm(name, depth):
    fpn = _build(name, images=2, depth=depth or 18).train()
    features = fpn(torch.randn(1, 3, 128, 128))
    for level in ("p3", "p4", "p5"):
        assert 1e-2 < features[level].std() < 1e2


@pytest.fixture(scope="module")
def darknet53():
    return build_darknet53_backbone(_cfg(DARKNET), ShapeSpec(channels=3)).eval()


def test_darknet53_has_52_convolutions(darknet53):
    convs = [m for m in darknet53.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == len(_batch_norms(darknet53)) == 52
    assert all(conv.bias is None for conv in convs)


def test_darknet53_stages(darknet53):
    assert darknet53.stem.weight.shape == (32, 3, 3, 3) and darknet53.stem.stride == (1, 1)
    channels = 32
    for i, (width, blocks) in enumerate([(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)], 1):
        stage = getattr(darknet53, f"dark{i}")
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        residual = [(width // 2, width, 1, 1), (width, width // 2, 3, 3)]
        assert [c.weight.shape for c in convs] == [(width, channels, 3, 3), *residual * blocks]
        assert [c.stride[0] for c in convs] == [2] + [1] * (2 * blocks)
        channels = width


@pytest.mark.parametrize("height, width", [(64, 96), (33, 75), (1, 31)])
@torch.no_grad()
def test_darknet53_sizes(darknet53, height, width):
    features = darknet53(torch.rand(1, 3, height, width))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        name: (1, channels, math.ceil(height / stride), math.ceil(width / stride))
        for name, channels, stride in [("dark3", 256, 8), ("dark4", 512, 16), ("dark5", 1024, 32)]
    }
    shapes = {name: (x.channels, x.stride) for name, x in darknet53.output_shape().items()}
    assert shapes == {"dark3": (256, 8), "dark4": (512, 16), "dark5": (1024, 32)}


@torch.no_grad()
def test_darknet_equals_the_functions():
    torch.manual_seed(0)
    stages = ["dark1", "dark2", "dark3"]
    darknet = DarkNet(stage_widths=(8, 12, 16), stage_blocks=(1, 2, 1), out_features=stages).eval()
    _randomize(darknet)
    image = torch.rand(2, 3, 21, 34)

    def layer(x, conv, **kwargs):
        x = F.conv2d(x, conv.weight, None, **kwargs)
        norm = conv.norm
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var + 1e-5).sqrt()[:, None, None]
        x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return torch.where(x > 0, x, 0.1 * x)

    features = darknet(image)
    x = layer(image, darknet.stem, padding=1)
    for name in stages:
        downsample, *blocks = getattr(darknet, name)
        x = layer(x, downsample, stride=2, padding=1)
        for block in blocks:
            x = x + layer(layer(x, block.conv1), block.conv2, padding=1)
        torch.testing.assert_close(features[name], x, rtol=1e-5, atol=1e-5)


def test_unknown_stages_are_refused_by_name():
    cfg = _cfg(DARKNET)
    cfg.MODEL.DARKNET.OUT_FEATURES = ["dark3", "res4", "dark6"]
    with pytest.raises(
        ValueError, match=r"MODEL\.DARKNET\.OUT_FEATURES: no stage \['dark6', 'res4'\].*'dark5'"
    ):
        build_darknet53_backbone(cfg, ShapeSpec(channels=3))
