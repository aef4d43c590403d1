"""Deformable convolution against an ordinary one and a plain loop; which blocks have it."""

import math

import pytest
import torch
from detectron2.layers import BatchNorm2d, Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from plain import base_cfg
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from yolact_d2.modeling.backbone.deform import ModulatedDeformConv2d
from yolact_d2.modeling.backbone.deform_sampling import sampled_deform_conv2d


def _conv(in_channels=3, out_channels=4, stride=1, dilation=1, bias=False, **kwargs):
    torch.manual_seed(0)
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        bias=bias,
        **kwargs,
    ).double()


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
@torch.no_grad()
def test_without_offsets_and_with_masks_of_one_it_equals_an_ordinary_convolution(stride, dilation):
    """Exactly, because sums of integers do not depend on the order."""
    conv = _conv(stride=stride, dilation=dilation, bias=True)
    conv.weight.copy_(torch.randint(-9, 10, conv.weight.shape))
    conv.bias.copy_(torch.tensor([-3, 0, 2, 5]))
    x = torch.randint(-9, 10, (2, 3, 7, 10)).double()
    deform = ModulatedDeformConv2d(conv).double()
    deform.conv_offset_mask.bias[deform.offset_channels :] = 1000  # sigmoid(1000) is 1
    assert torch.equal(deform(x), conv(x))
    assert conv(x).any()


def _bilinear_or_zero(image, y, x):
    """Bilinear sample of an image with zeros outside."""
    height, width = image.shape
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                total += share * image[row, column].item()
    return total


@pytest.mark.parametrize("num_groups, stride", [(1, 1), (1, 2), (2, 1)])
@torch.no_grad()
def test_equals_a_plain_loop(num_groups, stride):
    """With the channel order of the authors' checkpoints: y and x offsets in turn, then masks."""
    conv = _conv(in_channels=4, out_channels=2, stride=stride)
    deform = ModulatedDeformConv2d(conv, num_groups).double()
    for parameter in deform.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    x = torch.randn(1, 4, 5, 6).double()
    predicted = F.conv2d(
        x, deform.conv_offset_mask.weight, deform.conv_offset_mask.bias, stride=stride, padding=1
    )[0]
    result = deform(x)[0]
    assert result.shape == F.conv2d(x, conv.weight, stride=stride, padding=1)[0].shape
    num_offsets = 18 * num_groups
    for out, row, column in torch.ones_like(result).nonzero().tolist():
        expected = deform.bias[out].item()
        for channel in range(4):
            group = channel // (4 // num_groups)
            for element in range(9):
                k = 9 * group + element
                dy, dx = predicted[2 * k : 2 * k + 2, row, column].tolist()
                mask = torch.sigmoid(predicted[num_offsets + k, row, column]).item()
                y, x_ = row * stride - 1 + element // 3 + dy, column * stride - 1 + element % 3 + dx
                weight = deform.weight[out, channel, element // 3, element % 3].item()
                expected += weight * mask * _bilinear_or_zero(x[0, channel], y, x_)
        assert result[out, row, column].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_sampling_equals_torchvision_and_so_do_the_gradients():
    """Also far outside, on the lines between the pixels, and for all groups and memory formats."""
    for seed in range(20):
        torch.manual_seed(seed)

        def number(low, high):
            return int(torch.randint(low, high + 1, ()))

        num_images, groups, offset_groups = number(1, 3), number(1, 2), number(1, 3)
        channels, out_channels = 2 * groups * offset_groups, groups * number(2, 3)
        kernel, stride, padding, dilation = (
            (number(low, high), number(low, high)) for low, high in ((1, 3), (1, 2), (0, 2), (1, 2))
        )
        x = torch.randn(num_images, channels, number(5, 9), number(5, 9)).double()
        weight = torch.randn(out_channels, channels // groups, *kernel).double()
        out_size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
        num_samples = offset_groups * kernel[0] * kernel[1]
        offset = 4 * torch.randn(num_images, 2 * num_samples, *out_size).double()
        if seed % 2:
            offset = offset.round()
            x, offset, weight = (
                z.contiguous(memory_format=torch.channels_last) for z in (x, offset, weight)
            )
        offset[:, 0, 0], offset[:, 1, -1] = 1e30, -torch.finfo(offset.dtype).max
        bias, mask = torch.randn(out_channels).double(), torch.randn_like(offset[:, :num_samples])
        inputs = [z.requires_grad_() for z in (x, offset, weight, bias, mask)]
        results = []
        for function in (deform_conv2d, sampled_deform_conv2d):
            y = function(x, offset, weight, bias, stride, padding, dilation, mask)
            results.append([y, *torch.autograd.grad(y.sin().sum(), inputs)])
        for expected, got in zip(*results):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_traces_and_exported_programs_contain_torchvisions_operator():
    """Which exporters know; eager CPUs do without."""
    deform = ModulatedDeformConv2d(_conv()).float()
    x = torch.randn(1, 3, 8, 9)
    assert "torchvision::deform_conv2d" in str(torch.jit.trace(deform, x).inlined_graph)
    program = torch.export.export(deform, (x,))
    assert "torchvision.deform_conv2d" in program.graph_module.print_readable(print_output=False)
    with torch.profiler.profile() as profile:
        deform(x)
    names = {event.key for event in profile.key_averages()}
    assert "aten::embedding_bag" in names and "torchvision::deform_conv2d" not in names


@torch.no_grad()
def test_bfloat16_networks_have_precise_offsets():
    """The samples are rounded, where they are taken is not."""
    deform = ModulatedDeformConv2d(_conv(in_channels=32)).to(torch.bfloat16)
    x = torch.randn(1, 32, 20, 200, dtype=torch.bfloat16)
    offset_mask = torch.randn(1, 27, 20, 200, dtype=torch.bfloat16)
    got = deform._deform_conv(x, offset_mask)
    expected = deform.float()._deform_conv(x.float(), offset_mask.float())
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().mean() < 0.005 * expected.abs().mean()


def test_norm_and_activation_are_applied():
    """To half of an ordinary convolution's output, as the masks are 1 / 2 at first."""
    conv = _conv(norm=BatchNorm2d(4), activation=F.relu)
    deform = ModulatedDeformConv2d(conv).double().eval()
    deform.norm.running_mean.fill_(0.3)
    x = torch.randn(1, 3, 5, 6).double()
    convolved = F.conv2d(x, conv.weight, padding=1) / 2
    torch.testing.assert_close(deform(x), F.relu(deform.norm(convolved)))
    assert deform(x).min() == 0


def test_nan_inputs_give_nan_outputs():
    """torchvision's CPU kernel would read out of bounds."""
    deform = ModulatedDeformConv2d(_conv()).float()
    x = torch.randn(1, 3, 18, 18)
    x[0, 0, 4, 4] = torch.nan
    y = deform(x)
    assert y[0, :, 3:6, 3:6].isnan().all() and y[0, :, 10:].isfinite().all()


def test_autocast_is_close_to_float32():
    deform = ModulatedDeformConv2d(_conv()).float()
    with torch.no_grad():
        deform.conv_offset_mask.bias.normal_(std=0.5)
    x = torch.randn(1, 3, 8, 9)
    expected = deform(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = deform(F.conv2d(x, torch.eye(3)[:, :, None, None]))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    got.float().sum().backward()
    assert deform.weight.grad.dtype == torch.float32


def _resnet(freeze_at=0, **keys):
    cfg = base_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.update({"DEPTH": 50, "DEFORM_MODULATED": True, **keys})
    return build_backbone(cfg, ShapeSpec(channels=3)).bottom_up


@pytest.mark.parametrize(
    "stages, interval, expected",
    [
        ([True, False, False, True], 2, {"res2": [0, 2], "res5": [0, 2]}),
        ([False, True, True, True], 100, {"res3": [0], "res4": [0], "res5": [0]}),
    ],
)
def test_which_blocks_are_deformable(stages, interval, expected):
    """Those of the published models: see tests/checkpoint."""
    resnet = _resnet(DEFORM_ON_PER_STAGE=stages, DEFORM_INTERVAL=interval)
    for name in resnet.stage_names:
        deformable = [isinstance(b.conv2, ModulatedDeformConv2d) for b in getattr(resnet, name)]
        assert [i for i, x in enumerate(deformable) if x] == expected.get(name, [])


def test_configured_groups_and_frozen_stages():
    resnet = _resnet(3, DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_NUM_GROUPS=2)
    conv = resnet.res3[0].conv2
    assert conv.conv_offset_mask.out_channels == 54 and conv.offset_channels == 36
    assert not any(p.requires_grad for p in resnet.res3.parameters())
    assert isinstance(conv.norm, FrozenBatchNorm2d)
    assert all(p.requires_grad for p in resnet.res4[0].conv2.parameters())
