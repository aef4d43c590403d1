import math
from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import BufferList, _broadcast_params
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor, nn

# As in Detectron2's Box2BoxTransform.
_MAX_LOG_DISTANCE = math.log(1000 / 16)


def cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float], image_size: int, square: bool
) -> Tensor:
    """The anchors of one feature map location, centered at the origin, relative to the image.

    Args:
        sizes: square roots of the anchors' areas, in pixels (unless `square`).
        aspect_ratios: width / height.
        image_size: S, side of the square image, in pixels.
        square: set the height of each anchor to its width. The published YOLACT models were
            trained so by accident (``use_square_anchors`` in the authors' configuration).

    Returns:
        (len(sizes) * len(aspect_ratios), 4) XYXY, size-major.
    """
    widths_heights = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = size * math.sqrt(ratio) / image_size
            height = width if square else size / math.sqrt(ratio) / image_size
            widths_heights.append((width, height))
    half = torch.tensor(widths_heights, dtype=torch.float32) / 2
    return torch.cat([-half, half], dim=1)


def location_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Centers of the locations of a feature map, relative to the image.

    They are 1 / width apart, which differs from the nominal stride where S is not divisible by it.

    Returns:
        (height * width, 2) x and y in 0..1, row-major.
    """
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).reshape(-1, 2)


def are_relative(anchors: Sequence[Boxes]) -> bool:
    """Whether anchors are boxes relative to the image: their centers are on average in its middle.

    Detectron2's generators give boxes, some of them rotated, in pixels.
    """
    boxes = torch.cat([level.tensor for level in anchors])
    return boxes.shape[1] == 4 and 0 < boxes.mean().item() < 1


@ANCHOR_GENERATOR_REGISTRY.register()
class YOLACTAnchorGenerator(nn.Module):
    """YOLACT's anchors (arXiv 1904.02689, section 3.3; the authors' ``make_priors``).

    Unlike Detectron2's generators, it returns anchors relative to the image (0..1), see
    :class:`YOLACT`.
    """

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        image_size: int,
        square: bool,
    ):
        """
        Args:
            sizes, aspect_ratios: a list for each level, see :func:`cell_anchors`.
            image_size: S, side of the square network input, in pixels.
            square: see :func:`cell_anchors`.
        """
        super().__init__()
        self.cell_anchors = BufferList(
            [cell_anchors(s, r, image_size, square) for s, r in zip(sizes, aspect_ratios)]
        )

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        def per_level(key):
            values = cfg.MODEL.ANCHOR_GENERATOR[key]
            return _broadcast_params(values, len(input_shape), f"MODEL.ANCHOR_GENERATOR.{key}")

        return {
            "sizes": per_level("SIZES"),
            "aspect_ratios": per_level("ASPECT_RATIOS"),
            "image_size": cfg.INPUT.IMAGE_SIZE,
            "square": cfg.MODEL.ANCHOR_GENERATOR.SQUARE,
        }

    @property
    def num_cell_anchors(self) -> list[int]:
        """Number of anchors at each feature map location, for each level."""
        return [len(anchors) for anchors in self.cell_anchors]

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """
        Args:
            features: feature maps (N, C, Hi, Wi), one for each level.

        Returns:
            the Hi * Wi * num_cell_anchors anchors of each level, relative to the image, not
            clipped, in the order of row, column, cell anchor.
        """
        anchors = []
        for feature, cell in zip(features, self.cell_anchors):
            height, width = feature.shape[-2:]
            shifts = location_centers(height, width, cell.device).repeat(1, 2)
            anchors.append(Boxes((shifts[:, None] + cell[None]).reshape(-1, 4)))
        return anchors


class DistanceTransform:
    """The box coding of FCOS (arXiv 1904.01355, section 3.1): logarithms of the distances from the
    centre of an anchor to the left, top, right and bottom of the box. Their unit is half a side of
    the anchor, so 0 codes the anchor itself, as in `Box2BoxTransform`."""

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(P, 4) anchors and boxes XYXY -> (P, 4). A centre outside the box counts as just
        inside."""
        center, half = _centers_and_halves(src_boxes)
        distances = torch.cat([center - target_boxes[:, :2], target_boxes[:, 2:] - center], dim=1)
        return (distances / half).clamp(min=math.exp(-_MAX_LOG_DISTANCE)).log()

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """The inverse of :meth:`get_deltas`. All boxes have an area."""
        center, half = _centers_and_halves(boxes)
        distances = deltas.clamp(-_MAX_LOG_DISTANCE, _MAX_LOG_DISTANCE).exp() * half
        return torch.cat([center - distances[:, :2], center + distances[:, 2:]], dim=1)


def _centers_and_halves(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 2) centres and (P, 4) half the width, height, width and height of boxes (P, 4) XYXY."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, ((boxes[:, 2:] - boxes[:, :2]) / 2).repeat(1, 2)


def build_box_transform(cfg) -> Box2BoxTransform | DistanceTransform:
    """The coding of boxes relative to anchors that ``cfg.MODEL.YOLACT.ANCHOR_FREE`` chooses."""
    if cfg.MODEL.YOLACT.ANCHOR_FREE:
        return DistanceTransform()
    return Box2BoxTransform(weights=cfg.MODEL.YOLACT.BBOX_REG_WEIGHTS)
