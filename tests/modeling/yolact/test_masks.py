"""Mask assembly, cropping and resizing against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import bilinear
from strategies import seeds

from yolact_d2.modeling.yolact.masks import (
    assemble_masks,
    clip_boxes,
    detection_masks,
    inside_boxes,
    paste_masks,
    resize_masks,
    soft_masks,
)


def _inside(box, row, column):
    x1, y1, x2, y2 = box
    return x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1


def test_soft_masks_equal_the_loop():
    generator = torch.Generator().manual_seed(0)
    for num_prototypes, height, width, num in [(1, 1, 1, 1), (4, 5, 7, 3), (32, 6, 4, 8)]:
        prototypes = torch.randn(num_prototypes, height, width, generator=generator)
        coefficients = torch.randn(num, num_prototypes, generator=generator)
        corners = 7 * torch.rand(num, 2, 2, generator=generator)
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        logits, result = np.zeros((2, num, height, width))
        for n, row, column in np.ndindex(logits.shape):
            logits[n, row, column] = sum(
                coefficients[n, i].item() * prototypes[i, row, column].item()
                for i in range(num_prototypes)
            )
            if _inside(boxes[n].tolist(), row, column):
                result[n, row, column] = 1 / (1 + math.exp(-logits[n, row, column]))
        found = assemble_masks(prototypes, coefficients)
        np.testing.assert_allclose(found.numpy(), logits, rtol=1e-5, atol=1e-5)
        found = soft_masks(prototypes, coefficients, boxes)
        np.testing.assert_allclose(found.numpy(), result, rtol=1e-5, atol=1e-6)


def test_inside_boxes_equals_the_loop():
    for seed, (height, width) in enumerate([(6, 11), (9, 4), (1, 1)]):
        rng = np.random.default_rng(seed)
        start = rng.uniform(-4, 10, (40, 2))
        boxes = np.concatenate([start, start + rng.uniform(0, 8, (40, 2))], axis=1)
        boxes = boxes.astype(np.float32)
        boxes[::2] = boxes[::2].round()  # where < and <= differ
        boxes[:3] = [-9, -9, 90, 90], [-9, 0, -2, 3], [5, 5, 5, 5]
        result = inside_boxes(torch.tensor(boxes), height, width)
        for (n, row, column), inside in np.ndenumerate(result.numpy()):
            assert inside == _inside(boxes[n], row, column)


@pytest.mark.parametrize(
    "num, size, new_size",
    [
        (3, (8, 8), (20, 31)),
        (3, (6, 9), (3, 4)),
        (3, (9, 7), (4, 25)),
        (3, (5, 6), (5, 6)),
        (1, (550, 550), (138, 138)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_resize_masks_equals_the_loop(num, size, new_size, dtype):
    masks = torch.rand(num, *size, generator=torch.Generator().manual_seed(size[0]))
    if dtype == torch.bool:
        masks = masks < 0.5
    resized = np.stack([bilinear(mask, *new_size) for mask in masks.double().numpy()])
    result = resize_masks(masks, new_size)
    assert result.dtype == torch.bool
    decided = np.abs(resized - 0.5) > 1e-6
    np.testing.assert_array_equal(result.numpy()[decided], resized[decided] > 0.5)


def test_exactly_half_is_background():
    half = torch.tensor([[[1, 1], [0, 0]], [[1, 1], [1, 0]]], dtype=torch.bool)
    assert resize_masks(half, (1, 1)).flatten().tolist() == [False, True]
    soft, boxes = torch.full((1, 4, 4), 0.5), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert not paste_masks(soft, boxes, (8, 8)).any()
    assert paste_masks(soft + 0.001, boxes, (8, 8)).all()


def test_no_masks():
    for result in (
        resize_masks(torch.zeros(0, 9, 13), (20, 30)),
        paste_masks(torch.zeros(0, 9, 13), torch.zeros(0, 4), (20, 30)),
    ):
        assert result.shape == (0, 20, 30) and result.dtype == torch.bool


def _cropped_masks(num, height=23, width=31):
    """Soft masks in boxes of all sizes, some of them outside the grid."""
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(num, 2, generator=generator) * 1.2 - 0.1
    half = torch.rand(num, 2, generator=generator) * 0.4
    boxes = torch.cat([center - half, center + half], dim=1)
    boxes *= torch.tensor([width, height, width, height])
    soft = torch.rand(num, height, width, generator=generator)
    return soft * inside_boxes(boxes, height, width), boxes


@pytest.mark.parametrize(
    "size", [(1, 1), (7, 9), (23, 31), (37, 500), (230, 31), (427, 640), (1080, 1920)]
)
def test_paste_masks_equals_a_resize_of_whole_masks(size):
    soft, boxes = _cropped_masks(17)
    exact = torch.nn.functional.interpolate(
        soft[:, None].double(), size=size, mode="bilinear", align_corners=False
    )[:, 0]
    for result in (paste_masks(soft, boxes, size), resize_masks(soft, size)):
        assert result.shape == (17, *size) and result.dtype == torch.bool
        wrong = result != (exact > 0.5)
        assert ((exact[wrong] - 0.5).abs() < 1e-6).all()  # where rounding decides
        assert result.any() or size == (1, 1)


def test_detection_masks_are_the_soft_masks_resized():
    for seed, size in enumerate([(1, 1), (37, 50), (427, 640), (9, 300)]):
        generator = torch.Generator().manual_seed(seed)
        prototypes = torch.randn(5, 23, 31, generator=generator)
        boxes = _cropped_masks(12)[1]
        coefficients = torch.randn(12, 5, generator=generator)
        # Detections with equal boxes, with equal coefficients, and with both.
        order = torch.randint(12, (2, 40), generator=generator)
        boxes, coefficients = boxes[order[0]], coefficients[order[0].where(order[0] < 7, order[1])]
        soft = soft_masks(prototypes.double(), coefficients.double(), boxes)
        exact = torch.nn.functional.interpolate(soft[:, None], size=size, mode="bilinear")[:, 0]
        result = detection_masks(prototypes, coefficients, boxes, size)
        assert result.shape == (40, *size) and result.dtype == torch.bool
        assert ((exact[result != (exact > 0.5)] - 0.5).abs() < 1e-6).all()  # where rounding decides
        assert result.any() or size == (1, 1)
    assert detection_masks(prototypes, coefficients[:0], boxes[:0], (20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, 1e30, -1e30])
def test_paste_masks_with_boxes_far_away(value):
    boxes = torch.tensor([[1.0, 1.0, value, 3.0]])
    soft = torch.ones(1, 4, 6) * inside_boxes(boxes, 4, 6)
    result = paste_masks(soft, boxes, (9, 9))
    assert torch.equal(result, resize_masks(soft, (9, 9))) and result.any() == (value > 0)


_sides = st.sampled_from([1, 2, 3, 7, 20, 64, 131])


@settings(max_examples=100)
@given(seeds, st.integers(1, 12), st.integers(1, 12), _sides, _sides, st.booleans())
def test_masks_leave_their_boxes_by_the_margin_at_most(seed, rows, columns, height, width, full):
    """By one grid cell to the left and top, and two to the right and bottom."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(3, rows, columns, generator=generator) * 10
    coefficients = torch.rand(8, 3, generator=generator) * 2 - 1
    if full:
        prototypes[0], coefficients[:, 0] = 1e3, 1
    corners = torch.rand(8, 2, 2, generator=generator) * 1.4 - 0.2
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes *= torch.tensor([columns, rows] * 2)
    boxes[4:] = boxes[4:].round()
    soft = soft_masks(prototypes, coefficients, boxes)

    x = ((torch.arange(width) + 0.5) * columns / width)[None, None, :]
    y = ((torch.arange(height) + 0.5) * rows / height)[None, :, None]
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(dim=1)
    rounding = 1e-3
    allowed = (x > x1 - 1 - rounding) & (x < x2 + 2 + rounding)
    allowed = allowed & (y > y1 - 1 - rounding) & (y < y2 + 2 + rounding)
    for masks in (resize_masks(soft, (height, width)), paste_masks(soft, boxes, (height, width))):
        assert not (masks & ~allowed).any()


def test_masks_use_the_margin():
    """Grid cells 2 to 6 belong to a box from 3 to 5.01; 10 pixels per cell."""
    boxes = torch.tensor([[3.0, 3.0, 5.01, 5.01]])
    soft = soft_masks(torch.full((1, 12, 12), 50.0), torch.ones(1, 1), boxes)
    for masks in (resize_masks(soft, (120, 120)), paste_masks(soft, boxes, (120, 120))):
        for axis in (0, 1):
            assert masks[0].any(dim=axis).nonzero().flatten().tolist() == list(range(20, 70))


def test_clip_boxes_clips_each_corner_on_its_own_side_only():
    boxes = [[0.1, 0.2, 0.5, 0.75], [-0.1, -0.2, 1.5, 1.25], [1.1, 0.2, 1.5, 0.75]]
    expected = [[0.1, 0.2, 0.5, 0.75], [0, 0, 1, 1], [1.1, 0.2, 1, 0.75]]
    assert torch.equal(clip_boxes(torch.tensor(boxes)), torch.tensor(expected))
