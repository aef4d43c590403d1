"""The protonet against plain functions."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from plain import assert_xavier_uniform, base_cfg
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


def _weight_shapes(cfg, in_channels):
    protonet = build_protonet(cfg, ShapeSpec(channels=in_channels))
    assert isinstance(protonet, Protonet)
    return [m.weight.shape for m in protonet.modules() if isinstance(m, nn.Conv2d)]


def test_default_is_the_papers():
    assert _weight_shapes(base_cfg(), 256) == [(256, 256, 3, 3)] * 4 + [(32, 256, 1, 1)]


def test_configured_protonet():
    cfg = base_cfg()
    cfg.MODEL.YOLACT.PROTONET.CONV_DIM = 12
    cfg.MODEL.YOLACT.PROTONET.NUM_CONVS = 2
    cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES = 9
    expected = [(12, 10, 3, 3), (12, 12, 3, 3), (12, 12, 3, 3), (9, 12, 1, 1)]
    assert _weight_shapes(cfg, 10) == expected


def test_initialized_xavier_uniform_with_zero_biases():
    assert_xavier_uniform(_protonet(in_channels=32, conv_dim=40, num_prototypes=24), num_convs=5)


def test_unknown_name_is_an_error_that_lists_the_known_ones():
    cfg = base_cfg()
    cfg.MODEL.YOLACT.PROTONET.NAME = "ProtoNet"
    with pytest.raises(
        ValueError, match=r"MODEL\.YOLACT\.PROTONET\.NAME is 'ProtoNet', .*: (.*, )?Protonet"
    ):
        build_protonet(cfg, ShapeSpec(channels=10))
