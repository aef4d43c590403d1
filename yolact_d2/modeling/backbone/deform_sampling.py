from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor,
) -> Tensor:
    """torchvision's ``deform_conv2d`` as an embedding bag, whose rows are the pixels, and a
    convolution: on a CPU several times faster, forward and backward. In training the samples, which
    are as large as K images, are kept in memory.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * G * K, H', W') for K kernel elements and G groups of channels with offsets
            of their own: y and x of each in turn, in pixels. Finite.
        weight: (C', C / groups, kernel height, kernel width), of the dtype of x.
        bias: (C',), of the dtype of x.
        stride, padding, dilation: (vertical, horizontal).
        mask: (N, G * K, H', W').

    Returns:
        (N, C', H', W'), of the dtype of x. Samples are bilinear; outside the image there are zeros.
    """
    num_images, channels, height, width = x.shape
    kernel, out_size = weight.shape[2:], offset.shape[2:]
    num_elements = kernel.numel()
    groups = mask.shape[1] // num_elements
    # (N, H', W', kernel height, kernel width, G): the channels of a sample come last.
    offset = offset.view(num_images, groups, *kernel, 2, *out_size).permute(0, 5, 6, 2, 3, 1, 4)
    mask = mask.view(num_images, groups, *kernel, *out_size).permute(0, 4, 5, 2, 3, 1)
    rows, columns = (
        torch.arange(out_size[i], device=x.device)[:, None] * stride[i]
        + torch.arange(kernel[i], device=x.device) * dilation[i]
        - padding[i]
        for i in range(2)
    )
    y = offset[..., 0] + rows[:, None, :, None, None]
    x_ = offset[..., 1] + columns[:, None, :, None]

    # The four pixels around each sample, and their weights.
    top, left = y.floor(), x_.floor()
    down, right = mask * (y - top), x_ - left
    up = mask - down
    up_right, down_right = up * right, down * right
    weights = torch.stack([up - up_right, up_right, down - down_right, down_right], dim=-1)
    # A border of two zeros takes what is outside.
    table = x.view(num_images, groups, channels // groups, height, width).permute(0, 3, 4, 1, 2)
    table = F.pad(table, (0, 0, 0, 0, 2, 2, 2, 2)).flatten(0, 3)
    row, column = top.clamp(-2, height).int() + 2, left.clamp(-2, width).int() + 2
    image = torch.arange(num_images, device=x.device, dtype=torch.int32)
    index = (image.view(-1, 1, 1, 1, 1, 1) * (height + 4) + row) * (width + 4) + column
    index = index * groups + torch.arange(groups, device=x.device, dtype=torch.int32)
    below = index + (width + 4) * groups
    indices = torch.stack([index, index + groups, below, below + groups], dim=-1)

    samples = F.embedding_bag(
        indices.flatten(0, -2),
        table,
        mode="sum",
        per_sample_weights=weights.flatten(0, -2).to(x.dtype),
    )
    # The samples of an output pixel lie side by side: a convolution of one row.
    samples = samples.view(num_images, out_size[0], out_size[1] * num_elements, channels)
    return F.conv2d(
        samples.permute(0, 3, 1, 2),
        weight.flatten(2)[:, :, None],
        bias,
        stride=(1, num_elements),
        groups=channels // weight.shape[1],
    )
