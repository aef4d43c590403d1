"""The prediction head: its values, and their order."""

import numpy as np
import torch
from torch.nn import functional as F

from yolact_d2.modeling import DecoupledHead, YOLACTHead

LEVELS = [(5, 7), (3, 4), (2, 2)]
ANCHORS, CLASSES, PROTOTYPES = 3, 4, 5


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
    torch.manual_seed(0)
    head = YOLACTHead(
        in_channels=6,
        conv_dim=8,
        num_anchors=ANCHORS,
        num_classes=CLASSES,
        num_prototypes=PROTOTYPES,
    )
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


@torch.no_grad()
def test_two_towers_equal_their_convolutions():
    torch.manual_seed(0)
    head = DecoupledHead(
        in_channels=6,
        conv_dim=64,
        num_convs=2,
        num_anchors=ANCHORS,
        num_classes=CLASSES,
        num_prototypes=PROTOTYPES,
        has_background=False,
        prior_prob=0.2,
    )
    torch.testing.assert_close(head.cls_score.bias.sigmoid(), torch.full((12,), 0.2))
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape) / 4)
    features = [torch.randn(2, 6, *level) for level in LEVELS]

    def tower(subnet, x):
        assert len(subnet) == 6
        for conv, norm in (subnet[:2], subnet[3:5]):
            x = F.conv2d(x, conv.weight, conv.bias, padding=1)
            groups = x.unflatten(1, (32, 2))
            mean = groups.mean(dim=(2, 3, 4), keepdim=True)
            variance = groups.var(dim=(2, 3, 4), keepdim=True, correction=0)
            x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
            x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        return x

    def branch(subnet, layer, values):
        maps = [F.conv2d(tower(subnet, x), layer.weight, layer.bias, padding=1) for x in features]
        return _in_order(maps, values)

    logits, deltas, coefficients = head(features)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits, branch(head.cls_subnet, head.cls_score, CLASSES), **close)
    torch.testing.assert_close(deltas, branch(head.bbox_subnet, head.bbox_pred, 4), **close)
    raw = branch(head.bbox_subnet, head.mask_coefficients, PROTOTYPES)
    torch.testing.assert_close(coefficients, raw.tanh(), **close)
