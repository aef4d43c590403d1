"""The mask re-scoring network against plain functions."""

import pytest
import torch
from detectron2.modeling import build_model
from plain import assert_xavier_uniform, base_cfg
from torch.nn import functional as F

from yolact_d2.modeling import MaskIoUHead


def _head(conv_dims=(3, 4), mask_size=12):
    torch.manual_seed(0)
    return MaskIoUHead(conv_dims=conv_dims, num_classes=5, mask_size=mask_size)


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


def test_configured_as_in_the_paper():
    head = MaskIoUHead(base_cfg(), 138)
    assert [conv.out_channels for conv in head.convs] == [8, 16, 32, 64, 128]
    assert {(conv.kernel_size, conv.stride, conv.padding) for conv in head.convs} == {
        ((3, 3), (2, 2), (0, 0))
    }
    assert head.predictor.weight.shape == (80, 128, 1, 1)
    assert head.convs(torch.zeros(1, 1, 138, 138)).shape[-1] == 3


def test_initialized_xavier_uniform_with_zero_biases():
    assert_xavier_uniform(_head(conv_dims=(16, 32)), num_convs=3)


def test_smallest_mask_size():
    assert _head(mask_size=7)(torch.zeros(1, 7, 7), torch.tensor([0])).shape == (1,)
    with pytest.raises(ValueError, match="MODEL.YOLACT.MASK_IOU.CONV_DIMS: 2 convolutions"):
        _head(mask_size=6)


def test_too_small_an_image_size_is_an_error_when_the_model_is_built(shapes_cfg):
    shapes_cfg.merge_from_list(["MODEL.YOLACT.MASK_IOU.ENABLED", True])
    with pytest.raises(ValueError, match="INPUT.IMAGE_SIZE"):
        build_model(shapes_cfg)  # five convolutions on 40 x 40 prototypes
