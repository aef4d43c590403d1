"""The mask re-scoring network against plain functions."""

import pytest
import torch
from torch.nn import functional as F

from yolact_d2.modeling import MaskIoUHead


def _head(mask_size=12):
    torch.manual_seed(0)
    return MaskIoUHead(conv_dims=(3, 4), num_classes=5, mask_size=mask_size)


@torch.no_grad()
def test_equals_the_functions():
    head = _head()
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    masks, classes = torch.rand(6, 12, 17), torch.tensor([0, 4, 2, 2, 1, 3])
    x = masks[:, None]
    for conv in head.convs:
        x = F.conv2d(x, conv.weight, conv.bias, stride=2).clamp(min=0)
    assert x.shape == (6, 4, 2, 3)
    x = F.conv2d(x, head.predictor.weight, head.predictor.bias).clamp(min=0)
    expected = [x[i, c].max().item() for i, c in enumerate(classes.tolist())]
    assert head(masks, classes).tolist() == pytest.approx(expected)
    assert min(expected) == 0 < max(expected)


def test_no_masks_give_no_scores_but_zero_gradients():
    head = _head()
    scores = head(torch.zeros(0, 12, 12), torch.zeros(0, dtype=torch.int64))
    assert scores.shape == (0,)
    scores.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_smallest_mask_size():
    assert _head(mask_size=7)(torch.zeros(1, 7, 7), torch.tensor([0])).shape == (1,)
    with pytest.raises(ValueError, match="MODEL.YOLACT.MASK_IOU.CONV_DIMS: 2 convolutions"):
        _head(mask_size=6)
