"""The pyramid and DarkNet-53 against plain functions, and frozen batch norm."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from plain import base_cfg
from torch import nn
from torch.nn import functional as F

from yolact_d2.modeling import DarkNet
from yolact_d2.modeling.backbone.batch_norm import batch_norms

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


@pytest.mark.parametrize("name", [RESNET, DARKNET])
@torch.no_grad()
def test_pyramid_equals_the_functions(name):
    fpn = _build(name).eval()
    _randomize(fpn)
    image = torch.randn(2, 3, 75, 170)
    c3, c4, c5 = (fpn.bottom_up(image)[stage] for stage in fpn.in_features)
    assert [c.shape[-2:] for c in (c3, c4, c5)] == [(10, 22), (5, 11), (3, 6)]
    for stage, c, stride in zip(fpn.in_features, (c3, c4, c5), (8, 16, 32)):
        assert fpn.bottom_up.output_shape()[stage] == ShapeSpec(channels=c.shape[1], stride=stride)

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
    for level, stride in zip(LEVELS, (8, 16, 32, 64, 128)):
        assert fpn.output_shape()[level] == ShapeSpec(channels=32, stride=stride)
    assert fpn.size_divisibility == 0


def _train_step(fpn, images):
    """Whether all statistics of batch norms change, and whether all have gradients.

    None if some do and some do not.
    """

    def all_or_none(values):
        return values[0] if len(set(values)) == 1 else None

    fpn.zero_grad()
    statistics = [buffer for norm in batch_norms(fpn) for buffer in norm.buffers()]
    before = [x.clone() for x in statistics]
    sum(x.square().mean() for x in fpn(torch.randn(images, 3, 64, 64)).values()).backward()
    changed = [not torch.equal(x, y) for x, y in zip(before, statistics)]
    learned = [p.grad is not None for norm in batch_norms(fpn) for p in norm.parameters()]
    return all_or_none(changed), all_or_none(learned)


@pytest.mark.parametrize(
    "images, world_size, limit, frozen",
    [
        (5, 1, 6, True),
        (6, 1, 6, False),
        (10, 2, 6, True),
        (12, 2, 6, False),
        (8, 1, 9, True),
        (1, 1, 0, False),
    ],
)
def test_batch_norm_is_frozen_by_the_images_per_device(
    images, world_size, limit, frozen, monkeypatch
):
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    cfg = _cfg(images=images)
    assert cfg.MODEL.BACKBONE.FREEZE_BN_BELOW == 6
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = limit
    fpn = build_backbone(cfg)
    for _ in range(2):  # after an evaluation too
        fpn.eval().train()
        assert _train_step(fpn, images // world_size) == (not frozen, not frozen)
    others = [p for m in fpn.modules() if isinstance(m, nn.Conv2d) for p in m.parameters(False)]
    assert others and all(p.grad is not None and p.requires_grad for p in others)
    # A checkpoint does not depend on it.
    assert list(fpn.state_dict()) == list(_build(images=8 * world_size).state_dict())


def test_single_steps_and_evaluations_with_fewer_images_freeze_nothing():
    fpn = _build(images=8)
    with torch.no_grad():
        fpn.eval()(torch.randn(1, 3, 64, 64))
    changed, _ = _train_step(fpn.train(), 5)
    assert changed is False
    assert _train_step(fpn, 6) == (True, True)


@pytest.mark.parametrize("name, depth", [(RESNET, 18), (RESNET, 101), (DARKNET, 18)])
@torch.no_grad()
def test_features_without_pretrained_weights_have_ordinary_magnitudes(name, depth):
    """With frozen batch norm."""
    features = _build(name, images=2, depth=depth).train()(torch.randn(1, 3, 128, 128))
    for level in ("p3", "p4", "p5"):
        assert 1e-2 < features[level].std() < 1e2


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
