"""The protonet against the plain functions that it is made of."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from plain import base_cfg
from torch import nn
from torch.nn import functional as F

from yolact_d2.modeling import Protonet, build_protonet


def _protonet(num_convs=3, in_channels=6, conv_dim=7, num_prototypes=5):
    torch.manual_seed(0)
    return Protonet(
        in_channels=in_channels,
        conv_dim=conv_dim,
        num_convs=num_convs,
        num_prototypes=num_prototypes,
    )


@pytest.mark.parametrize("num_convs", [0, 1, 3])
@pytest.mark.parametrize("height, width", [(5, 8), (1, 3)])
@torch.no_grad()
def test_equals_the_functions(num_convs, height, width):
    protonet = _protonet(num_convs)
    for parameter in protonet.parameters():
        parameter.copy_(torch.randn(parameter.shape) / 3)
    *convs, upsampled, prototypes = [m for m in protonet.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == num_convs
    feature = torch.randn(2, 6, height, width)

    x = feature
    for conv in convs:
        x = F.conv2d(x, conv.weight, conv.bias, padding=1).clamp(min=0)
    x = F.interpolate(x, size=(2 * height, 2 * width), mode="bilinear", align_corners=False)
    x = F.conv2d(x, upsampled.weight, upsampled.bias, padding=1).clamp(min=0)
    x = F.conv2d(x, prototypes.weight, prototypes.bias).clamp(min=0)

    result = protonet(feature)
    assert result.shape == (2, 5, 2 * height, 2 * width)
    torch.testing.assert_close(result, x)
    assert result.min() == 0 and result.max() > 0


def test_configured_protonet():
    cfg = base_cfg()
    cfg.MODEL.YOLACT.PROTONET.CONV_DIM = 12
    cfg.MODEL.YOLACT.PROTONET.NUM_CONVS = 2
    cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES = 9
    protonet = build_protonet(cfg, ShapeSpec(channels=10))
    assert isinstance(protonet, Protonet)
    weights = [m.weight.shape for m in protonet.modules() if isinstance(m, nn.Conv2d)]
    assert weights == [(12, 10, 3, 3), (12, 12, 3, 3), (12, 12, 3, 3), (9, 12, 1, 1)]


def test_default_is_the_papers_at_550():
    cfg = base_cfg()
    protonet = build_protonet(cfg, ShapeSpec(channels=256))
    weights = [m.weight.shape for m in protonet.modules() if isinstance(m, nn.Conv2d)]
    assert weights == [(256, 256, 3, 3)] * 4 + [(32, 256, 1, 1)]
    small = _protonet(in_channels=1, conv_dim=1, num_prototypes=32)
    assert small(torch.rand(1, 1, 69, 69)).shape == (1, 32, 138, 138)


def test_initialised_xavier_uniform_with_zero_biases():
    for layer in _protonet(in_channels=32, conv_dim=40, num_prototypes=24).modules():
        if isinstance(layer, nn.Conv2d):
            out_channels, in_channels, side, _ = layer.weight.shape
            bound = math.sqrt(6 / (side**2 * (in_channels + out_channels)))
            assert 0.99 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()


def test_unknown_name_lists_the_known_ones():
    cfg = base_cfg()
    cfg.MODEL.YOLACT.PROTONET.NAME = "ProtoNet"
    with pytest.raises(
        ValueError, match=r"MODEL\.YOLACT\.PROTONET\.NAME is 'ProtoNet', .*: (.*, )?Protonet"
    ):
        build_protonet(cfg, ShapeSpec(channels=10))
