from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..weight_init import xavier_uniform_init


class MaskIoUHead(nn.Module):
    """YOLACT++'s fast mask re-scoring network (arXiv 1912.06218, section 5.1).

    Predicts the IoU of a predicted mask with the object's true mask, for each class, from the
    predicted mask alone.
    """

    @configurable
    def __init__(self, *, conv_dims: Sequence[int], num_classes: int, mask_size: int):
        """
        Args:
            conv_dims: output channels of the 3x3 convolutions of stride 2.
            num_classes: C, number of foreground classes.
            mask_size: smaller side of the masks, in grid cells.
        """
        super().__init__()
        for _ in conv_dims:
            mask_size = (mask_size - 3) // 2 + 1
        if mask_size < 1:
            raise ValueError(
                f"MODEL.YOLACT.MASK_IOU.CONV_DIMS: {len(conv_dims)} convolutions of stride 2 are "
                "too many for the prototypes; use fewer, a larger INPUT.IMAGE_SIZE or a smaller "
                "INPUT.MULTI_SCALE"
            )
        channels = [1, *conv_dims]
        self.convs = nn.Sequential(
            *(
                Conv2d(in_channels, out_channels, kernel_size=3, stride=2, activation=F.relu_)
                for in_channels, out_channels in zip(channels, channels[1:])
            )
        )
        self.predictor = Conv2d(channels[-1], num_classes, kernel_size=1, activation=F.relu_)
        xavier_uniform_init(self)

    @classmethod
    def from_config(cls, cfg, mask_size: int):
        return {
            "conv_dims": cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS,
            "num_classes": cfg.MODEL.YOLACT.NUM_CLASSES,
            "mask_size": mask_size,
        }

    def forward(self, masks: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            masks: (N, h, w) in 0..1, cropped, not thresholded.
            classes: (N,) in 0..C-1.

        Returns:
            (N,) predicted IoUs for these classes, at least 0.
        """
        ious = F.adaptive_max_pool2d(self.predictor(self.convs(masks[:, None])), 1)
        return ious.flatten(1).gather(1, classes[:, None]).squeeze(1)
