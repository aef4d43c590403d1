from collections.abc import Sequence

import torch
from detectron2.layers import Conv2d
from detectron2.modeling import ResNet
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ..tracing import is_eager_cpu
from .deform_sampling import sampled_deform_conv2d


class ModulatedDeformConv2d(nn.Module):
    """Deformable convolution v2 (arXiv 1811.11168) that predicts its own offsets and masks.

    For each output position and each kernel element, an extra convolution predicts where to sample
    the input (an offset in pixels) and a weight (a mask in 0..1). It is initialized with zeros: no
    offsets, masks of 0.5.

    Detectron2's own deformable blocks need a GPU, and exist for whole stages only.
    """

    def __init__(self, conv: Conv2d, deform_groups: int = 1):
        """
        Args:
            conv: the convolution to replace. Its weight, stride, padding, norm and activation are
                taken over; a bias is added if it has none.
            deform_groups: number of channel groups with offsets of their own.
        """
        super().__init__()
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.weight = conv.weight
        self.bias = nn.Parameter(torch.zeros(conv.out_channels)) if conv.bias is None else conv.bias
        self.norm = conv.norm
        self.activation = conv.activation

        # Channels: y and x offset of each kernel element in turn, then the masks.
        num_samples = deform_groups * conv.kernel_size[0] * conv.kernel_size[1]
        self.offset_channels = 2 * num_samples
        self.conv_offset_mask = Conv2d(
            conv.in_channels,
            3 * num_samples,
            kernel_size=conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
        )
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).

        Returns:
            (N, out_channels, H', W'), the size that the replaced convolution gives.
        """
        offset_mask = self.conv_offset_mask(x)
        x = self._deform_conv(x, offset_mask).to(offset_mask.dtype)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def _deform_conv(self, x: Tensor, offset_mask: Tensor) -> Tensor:
        # Half precision is too coarse for offsets.
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        offset, mask = offset_mask.to(precise).tensor_split([self.offset_channels], dim=1)
        # torchvision's CPU kernel runs on one thread, and has no half precision.
        sampled = is_eager_cpu(x)
        dtype = self.weight.dtype if sampled else precise
        convolve = sampled_deform_conv2d if sampled else deform_conv2d
        with torch.autocast(x.device.type, enabled=False):
            return convolve(
                x.to(dtype),
                # NaN offsets make torchvision read out of bounds. The mask keeps the NaN.
                offset.nan_to_num(),
                self.weight.to(dtype),
                self.bias.to(dtype),
                self.stride,
                self.padding,
                self.dilation,
                mask.sigmoid(),
            )


def use_deformable_convs(
    resnet: ResNet, on_per_stage: Sequence[bool], interval: int, deform_groups: int = 1
) -> None:
    """Replace 3x3 convolutions `conv2` of residual blocks by deformable ones, in place.

    Args:
        resnet: a ResNet with stages "res2", "res3", ...
        on_per_stage: for each of the stages "res2" to "res5", whether to change it.
        interval: change the blocks 0, `interval`, 2 * `interval`, ... of these stages.
        deform_groups: see :class:`ModulatedDeformConv2d`.

    Raises:
        ValueError: naming the config keys, if there are no such blocks.
    """
    names = [f"res{i}" for i in range(2, 6)]
    chosen = [name for name, on in zip(names, on_per_stage) if on]
    if len(on_per_stage) != 4 or interval < 1 or not {*chosen} <= {*resnet.stage_names}:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {list(on_per_stage)}, DEFORM_INTERVAL is "
            f"{interval}: there must be a value for each of {names}, of which this ResNet has "
            f"{resnet.stage_names}, and an interval of 1 or more"
        )
    for name in chosen:
        for block in getattr(resnet, name)[::interval]:
            block.conv2 = ModulatedDeformConv2d(block.conv2, deform_groups)
