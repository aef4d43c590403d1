"""Anchors against a plain loop in double precision, and their configuration."""

import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    build_anchor_generator,
    build_model,
)
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from plain import base_cfg

from yolact_d2.modeling import YOLACTAnchorGenerator


def _loop(levels, sizes, ratios, image_size, square):
    """In pixels, then divided by the side of the image."""
    anchors = []
    for (rows, columns), level_sizes in zip(levels, sizes):
        for row in range(rows):
            for column in range(columns):
                for size in level_sizes:
                    for ratio in ratios:
                        x = (column + 0.5) / columns * image_size
                        y = (row + 0.5) / rows * image_size
                        width = size * math.sqrt(ratio)
                        height = width if square else size / math.sqrt(ratio)
                        anchors.append(
                            (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                        )
    return np.array(anchors) / image_size


FIVE_SIZES = [[24], [48], [96], [192], [384]]
THREE_SIZES = [[size * 2 ** (i / 3) for i in range(3)] for (size,) in FIVE_SIZES]
LEVELS_550 = [(side, side) for side in (69, 35, 18, 9, 5)]
OTHER_LEVELS = [(3, 5), (4, 2), (1, 3), (2, 2), (1, 1)]


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize(
    "levels, image_size, sizes, ratios, count",
    [
        (LEVELS_550, 550, FIVE_SIZES, [1.0, 0.5, 2.0], 19248),
        (LEVELS_550, 550, THREE_SIZES, [1.0, 0.5, 2.0], 57744),
        # One list of sizes is used for all levels.
        (OTHER_LEVELS, 192, [[20, 30]], [1.0, 2.0], 4 * (15 + 8 + 3 + 4 + 1)),
    ],
)
def test_configured_anchors_equal_the_loop(levels, image_size, sizes, ratios, count, square):
    cfg = base_cfg()
    cfg.INPUT.IMAGE_SIZE = image_size
    cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = sizes, [ratios]
    cfg.MODEL.ANCHOR_GENERATOR.SQUARE = square
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=8)] * 5)
    assert generator.num_cell_anchors == [len(ratios) * len(sizes[0])] * 5
    assert not generator.state_dict()  # anchors are not in checkpoints
    anchors = torch.cat(
        [boxes.tensor for boxes in generator([torch.zeros(2, 1, *level) for level in levels])]
    )
    assert anchors.dtype == torch.float32 and len(anchors) == count
    expected = _loop(levels, sizes * (5 // len(sizes)), ratios, image_size, square)
    # float32 values around 1 are 6e-8 apart.
    np.testing.assert_allclose(anchors.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", ["SIZES", "ASPECT_RATIOS"])
def test_wrong_number_of_lists_is_an_error_that_names_the_key(key):
    cfg = base_cfg()
    cfg.MODEL.ANCHOR_GENERATOR[key] = [[1.0]] * 2
    with pytest.raises(AssertionError, match=rf"MODEL\.ANCHOR_GENERATOR\.{key} of length 2.* 5!"):
        YOLACTAnchorGenerator(cfg, [ShapeSpec(channels=8)] * 5)


def test_only_generators_that_give_relative_boxes_are_accepted(shapes_cfg):
    """Detectron2's give pixels; another's may be a subclass of them."""

    class InPixels(DefaultAnchorGenerator):
        pass

    class Relative(DefaultAnchorGenerator):
        def forward(self, features):
            return [Boxes(boxes.tensor / 128) for boxes in super().forward(features)]

    shapes_cfg.INPUT.IMAGE_SIZE = 128
    for kind in (InPixels, Relative):
        ANCHOR_GENERATOR_REGISTRY.register(kind)
    try:
        for name in ("DefaultAnchorGenerator", "RotatedAnchorGenerator", "InPixels"):
            shapes_cfg.MODEL.ANCHOR_GENERATOR.NAME = name
            with pytest.raises(ValueError, match=f"ANCHOR_GENERATOR.NAME: .* {name} .*relative"):
                build_model(shapes_cfg)
        shapes_cfg.MODEL.ANCHOR_GENERATOR.NAME = "Relative"
        assert isinstance(build_model(shapes_cfg).anchor_generator, Relative)
    finally:
        for name in ("InPixels", "Relative"):
            del ANCHOR_GENERATOR_REGISTRY._obj_map[name]
