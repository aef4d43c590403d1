"""The protonet against plain functions."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from plain import base_cfg
from torch import nn
from torch.nn import functional as F

from yolact_d2.modeling import build_protonet


@pytest.mark.parametrize("num_convs", [0, 1, 3])
@pytest.mark.parametrize("height, width", [(5, 8), (1, 3)])
@torch.no_grad()
def test_equals_the_functions(num_convs, height, width):
    cfg = base_cfg()
    cfg.MODEL.YOLACT.PROTONET.update({"CONV_DIM": 7, "NUM_CONVS": num_convs, "NUM_PROTOTYPES": 5})
    torch.manual_seed(0)
    protonet = build_protonet(cfg, ShapeSpec(channels=6))
    for parameter in protonet.parameters():
        parameter.copy_(torch.randn(parameter.shape) / 3)
    *convs, upsampled, prototypes = [m for m in protonet.modules() if isinstance(m, nn.Conv2d)]
    widths = [(conv.in_channels, conv.out_channels) for conv in convs]
    assert widths == [(6, 7), (7, 7), (7, 7)][:num_convs]
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
