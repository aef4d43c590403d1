"""The prediction head: its values, and their order."""

import numpy as np
import torch
from torch.nn import functional as F

from yolact_d2.modeling import YOLACTHead

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
