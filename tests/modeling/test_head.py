"""The prediction head: its values, and their order."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from plain import assert_xavier_uniform, base_cfg
from torch.nn import functional as F

from yolact_d2.modeling import YOLACTHead

LEVELS = [(5, 7), (3, 4), (2, 2)]
ANCHORS, CLASSES, PROTOTYPES = 3, 4, 5


def _head(in_channels=6, conv_dim=8):
    torch.manual_seed(0)
    return YOLACTHead(
        in_channels=in_channels,
        conv_dim=conv_dim,
        num_anchors=ANCHORS,
        num_classes=CLASSES,
        num_prototypes=PROTOTYPES,
    )


def _in_order(maps, values):
    """(N, anchors * values, H, W) of each level -> (N, all anchors, values)."""
    out = []
    for level in maps:
        _, _, rows, columns = level.shape
        for row in range(rows):
            for column in range(columns):
                for anchor in range(ANCHORS):
                    channels = slice(anchor * values, (anchor + 1) * values)
                    out.append(level[:, channels, row, column])
    return torch.stack(out, dim=1)


@torch.no_grad()
def test_equals_the_convolutions_in_the_order_of_the_anchors():
    head = _head()
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape) / 4)
    features = [torch.randn(2, 6, *level) for level in LEVELS]

    def branch(layer, values):
        maps = []
        for feature in features:
            x = F.conv2d(feature, head.conv.weight, head.conv.bias, padding=1).clamp(min=0)
            maps.append(F.conv2d(x, layer.weight, layer.bias, padding=1))
        return _in_order(maps, values)

    logits, deltas, coefficients = head(features)
    torch.testing.assert_close(logits, branch(head.cls_score, CLASSES + 1))
    torch.testing.assert_close(deltas, branch(head.bbox_pred, 4))
    raw = branch(head.mask_coefficients, PROTOTYPES)
    np.testing.assert_allclose(
        coefficients.numpy(), np.tanh(raw.double().numpy()), rtol=1e-5, atol=1e-6
    )
    assert raw.abs().max() > 1


def test_configured_head_has_as_many_predictions_as_anchors():
    cfg = base_cfg()
    cfg.MODEL.YOLACT.NUM_CLASSES = 4
    cfg.MODEL.YOLACT.HEAD_CONV_DIM = 8
    shapes = [ShapeSpec(channels=6)] * 5
    head, generator = YOLACTHead(cfg, shapes), build_anchor_generator(cfg, shapes)
    features = [torch.randn(2, 6, side, side) for side in (24, 12, 6, 3, 2)]
    num_anchors = sum(map(len, generator(features)))
    assert [x.shape for x in head(features)] == [(2, num_anchors, n) for n in (5, 4, 32)]


def test_initialized_xavier_uniform_with_zero_biases():
    assert_xavier_uniform(_head(in_channels=32, conv_dim=48), num_convs=4)


def test_levels_with_different_numbers_of_anchors_are_an_error():
    cfg = base_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[14], [24], [40], [66], [110, 120]]
    with pytest.raises(ValueError, match=r"SIZES and ASPECT_RATIOS, got \[3, 3, 3, 3, 6\]"):
        YOLACTHead(cfg, [ShapeSpec(channels=6)] * 5)
