from collections.abc import Sequence

import torch
from detectron2.layers import Conv2d
from detectron2.modeling import ResNet
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class ModulatedDeformConv2d(nn.Module):
    """Deformable convolution v2 (arXiv 1811.11168) that predicts its own offsets.

    A convolution of the kernel's own size looks at the input and gives, for each output position
    and each tap of the kernel, where that tap shall read (an offset, in pixels of the input) and
    how much it counts (a mask in 0..1). It starts from zero: no offsets, masks of 0.5.
    """

    def __init__(self, conv: Conv2d, deform_groups: int = 1):
        """
        Args:
            conv: the convolution to replace. Its weights, stride, norm and so on are taken over; a
                bias is added if it has none.
            deform_groups: the input's channels are moved in so many groups.

        Raises:
            ValueError: if they cannot be divided so.
        """
        super().__init__()
        if deform_groups < 1 or conv.in_channels % deform_groups:
            raise ValueError(
                f"MODEL.RESNETS.DEFORM_NUM_GROUPS is {deform_groups}; it must divide "
                f"{conv.in_channels}, the channels of a deformable convolution"
            )
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.weight = conv.weight
        self.bias = nn.Parameter(torch.zeros(conv.out_channels)) if conv.bias is None else conv.bias
        self.norm = conv.norm
        self.activation = conv.activation

        # For each tap y and x, then for each tap its mask.
        num_taps = deform_groups * conv.kernel_size[0] * conv.kernel_size[1]
        self.offset_channels = 2 * num_taps
        self.conv_offset_mask = Conv2d(
            conv.in_channels,
            3 * num_taps,
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
            (N, out_channels, H', W'), of the size that the replaced convolution gives.
        """
        offset_mask = self.conv_offset_mask(x)
        # Not in half precision: offsets need their digits, and for a CPU torchvision has no kernel.
        x = self._deform_conv(x, offset_mask).to(offset_mask.dtype)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def _deform_conv(self, x: Tensor, offset_mask: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        offset, mask = offset_mask.to(dtype).tensor_split([self.offset_channels], dim=1)
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(
                x.to(dtype),
                # torchvision reads outside of the input where a NaN sends it. The mask stays NaN.
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
    """Make the 3x3 convolutions `conv2` of residual blocks deformable, in place.

    Args:
        resnet: its stages are "res2" to "res5", or the first of them.
        on_per_stage: which of "res2" to "res5" to change.
        interval: change the blocks 0, `interval`, 2 * `interval`, ... of each of them.
        deform_groups: see :class:`ModulatedDeformConv2d`.

    Raises:
        ValueError: naming the config key, if there is nothing to change where something should be.
    """
    if interval < 1:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_INTERVAL is {interval}; it must be 1 (every block of a stage) "
            "or more"
        )
    names = [f"res{i}" for i in range(2, 6)]
    if len(on_per_stage) != len(names):
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {list(on_per_stage)}; it must have a value for "
            f"each of {names}"
        )
    chosen = [name for name, on in zip(names, on_per_stage) if on]
    missing = [name for name in chosen if name not in resnet.stage_names]
    if missing:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE asks for {missing}, but the ResNet ends at "
            f"{resnet.stage_names[-1]}, the last of MODEL.RESNETS.OUT_FEATURES: there is no block "
            "to replace"
        )
    for name in chosen:
        for block in getattr(resnet, name)[::interval]:
            block.conv2 = ModulatedDeformConv2d(block.conv2, deform_groups)
