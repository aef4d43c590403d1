"""The pyramid and DarkNet-53 against plain functions, and frozen batch norm."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from plain import assert_xavier_uniform, base_cfg
from torch import nn
from torch.nn import functional as F

from yolact_d2.modeling import DarkNet, build_darknet53_backbone
from yolact_d2.modeling.backbone.batch_norm import batch_norms, fixed_statistics

RESNET, DARKNET = "build_yolact_resnet_fpn_backbone", "build_yolact_darknet53_fpn_backbone"
LEVELS = ["p3", "p4", "p5", "p6", "p7"]


def _cfg(name=RESNET, images=8, depth=18):
    cfg = base_cfg()
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


def _randomize(module):
    """Set random biases and batch norms, so that each has an effect."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.5, 1.5)
        if getattr(layer, "bias", None) is not None:
            layer.bias.normal_(std=0.5)


@torch.no_grad()
def test_level_sizes():
    fpn = _build().eval()
    features = fpn(torch.randn(1, 3, 550, 550))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        name: (1, 32, side, side) for name, side in zip(LEVELS, (69, 35, 18, 9, 5))
    }
    assert {name: (x.channels, x.stride) for name, x in fpn.output_shape().items()} == {
        name: (32, stride) for name, stride in zip(LEVELS, (8, 16, 32, 64, 128))
    }
    assert fpn.size_divisibility == 0


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


def test_pyramid_is_initialized_xavier_uniform_with_zero_biases():
    fpn = _build()
    layers = nn.ModuleList([*fpn.lateral_convs, *fpn.output_convs, fpn.top_block])
    assert_xavier_uniform(layers, num_convs=8)


@pytest.mark.parametrize("depth, blocks, kernels", [(18, 8, [3, 3]), (50, 16, [1, 3, 1])])
def test_stride_is_in_the_3x3_convolution(depth, blocks, kernels):
    resnet = _build(depth=depth).bottom_up
    all_blocks = [block for stage in resnet.stages for block in stage]
    num_strided = 0
    for block in all_blocks:
        convs = [getattr(block, f"conv{i + 1}") for i in range(len(kernels))]
        assert [conv.kernel_size[0] for conv in convs] == kernels
        strides = {conv.kernel_size[0]: conv.stride[0] for conv in reversed(convs)}
        assert strides.get(1, 1) == 1
        num_strided += strides[3] == 2
    assert (len(all_blocks), num_strided) == (blocks, 3)


def _is_frozen(fpn):
    norms = batch_norms(fpn.bottom_up)
    affine = {parameter.requires_grad for norm in norms for parameter in norm.parameters()}
    assert len(affine) == 1
    return affine == {False}


def _train_step(fpn, images):
    """Whether all statistics of batch norms change, and whether all have gradients.

    None if some do and some do not.
    """

    def all_or_none(values):
        return values[0] if len(set(values)) == 1 else None

    fpn.train()
    fpn.zero_grad()
    statistics = [buffer for norm in batch_norms(fpn) for buffer in norm.buffers()]
    before = [x.clone() for x in statistics]
    sum(x.square().mean() for x in fpn(torch.randn(images, 3, 64, 64)).values()).backward()
    changed = [not torch.equal(x, y) for x, y in zip(before, statistics)]
    learned = [p.grad is not None for norm in batch_norms(fpn) for p in norm.parameters()]
    return all_or_none(changed), all_or_none(learned)


@pytest.mark.parametrize("images, world_size, frozen", [(5, 1, True), (6, 1, False), (10, 2, True)])
def test_batch_norm_is_frozen_below_6_images_per_device(images, world_size, frozen, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    fpn = _build(images=images)
    assert _is_frozen(fpn) is frozen
    for _ in range(2):  # after an evaluation too
        fpn.eval()
        assert _train_step(fpn, images // world_size) == (not frozen, not frozen)
    others = [p for m in fpn.modules() if isinstance(m, nn.Conv2d) for p in m.parameters(False)]
    assert others and all(p.grad is not None and p.requires_grad for p in others)


def test_single_steps_and_evaluations_with_fewer_images_freeze_nothing():
    fpn = _build(images=8)
    with torch.no_grad():
        fpn.eval()(torch.randn(1, 3, 64, 64))
    changed, _ = _train_step(fpn, 5)
    assert changed is False
    assert _train_step(fpn, 6) == (True, True)
    assert not _is_frozen(fpn)


def test_limit_of_frozen_batch_norm_is_configurable():
    cfg = _cfg(images=8)
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = 9
    assert _is_frozen(build_backbone(cfg))
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    assert not _is_frozen(build_backbone(cfg))


def test_frozen_and_trained_models_have_the_same_checkpoint_keys():
    assert list(_build(images=2).state_dict()) == list(_build(images=8).state_dict())


def test_fixed_statistics_restores_the_mode_of_batch_norms():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    layers = module, module[0], module[1], module[2][0]
    module[1].eval()
    with pytest.raises(KeyError), fixed_statistics(module):
        assert [layer.training for layer in layers] == [True, True, False, False]
        raise KeyError
    assert [layer.training for layer in layers] == [True, True, False, True]


def test_unknown_stage_is_an_error_that_lists_the_known_ones():
    cfg = _cfg(DARKNET)
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "dark4", "dark5"]
    with pytest.raises(ValueError, match=r"FPN.IN_FEATURES: no stage \['res3'\].*'dark3'"):
        build_backbone(cfg)


@pytest.mark.parametrize("name, depth", [(RESNET, 18), (RESNET, 101), (DARKNET, 18)])
@torch.no_grad()
def test_features_without_pretrained_weights_have_ordinary_magnitudes(name, depth):
    """With frozen batch norm."""
    features = _build(name, images=2, depth=depth).train()(torch.randn(1, 3, 128, 128))
    for level in ("p3", "p4", "p5"):
        assert 1e-2 < features[level].std() < 1e2


@torch.no_grad()
def test_darknet53_layers_and_sizes():
    darknet = build_darknet53_backbone(_cfg(DARKNET), ShapeSpec(channels=3)).eval()
    convs = [m for m in darknet.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == len(batch_norms(darknet)) == 52
    assert all(conv.bias is None for conv in convs)
    assert darknet.stem.weight.shape == (32, 3, 3, 3) and darknet.stem.stride == (1, 1)
    channels = 32
    for i, (width, blocks) in enumerate([(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)], 1):
        stage = getattr(darknet, f"dark{i}")
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        residual = [(width // 2, width, 1, 1), (width, width // 2, 3, 3)]
        assert [c.weight.shape for c in convs] == [(width, channels, 3, 3), *residual * blocks]
        assert [c.stride[0] for c in convs] == [2] + [1] * (2 * blocks)
        channels = width
    outputs = [("dark3", 256, 8), ("dark4", 512, 16), ("dark5", 1024, 32)]
    shapes = [(name, x.channels, x.stride) for name, x in darknet.output_shape().items()]
    assert shapes == outputs
    for height, width in [(64, 96), (33, 75), (1, 31)]:
        features = darknet(torch.rand(1, 3, height, width))
        for name, channels, stride in outputs:
            size = (1, channels, math.ceil(height / stride), math.ceil(width / stride))
            assert features[name].shape == size


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
