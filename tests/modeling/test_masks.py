"""Mask assembly, cropping and resizing against loops."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from plain import bilinear

from yolact_d2.modeling import masks
from yolact_d2.modeling.masks import (
    assemble_masks,
    bilinear_weights,
    cell_ranges,
    inside_boxes,
    paste_masks,
    resize_cropped_masks,
    resize_masks,
    scale_boxes,
    soft_masks,
)


@pytest.mark.parametrize("k, height, width, num", [(1, 1, 1, 1), (4, 5, 7, 3), (32, 6, 4, 8)])
def test_assembled_masks_are_linear_combinations(k, height, width, num):
    generator = torch.Generator().manual_seed(k)
    prototypes = torch.randn(k, height, width, generator=generator)
    coefficients = torch.randn(num, k, generator=generator)
    expected = np.zeros((num, height, width))
    for n in range(num):
        for j in range(k):
            expected[n] += coefficients[n, j].item() * prototypes[j].double().numpy()
    result = assemble_masks(prototypes, coefficients)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_no_coefficients_give_no_masks():
    assert assemble_masks(torch.zeros(3, 5, 7), torch.zeros(0, 3)).shape == (0, 5, 7)


def _inside(boxes, height, width):
    inside = np.zeros((len(boxes), height, width), dtype=bool)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        for row in range(height):
            for column in range(width):
                in_columns = x1 - 1 <= column < x2 + 1
                in_rows = y1 - 1 <= row < y2 + 1
                inside[n, row, column] = in_columns and in_rows
    return inside


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("height, width", [(6, 11), (9, 4), (1, 1)])
def test_inside_boxes_at_random_places(height, width, seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(-4, 10, (40, 2))
    boxes = np.concatenate([start, start + rng.uniform(0, 8, (40, 2))], axis=1).astype(np.float32)
    # Half of the boxes end on cells, where < and <= differ.
    boxes[::2] = boxes[::2].round()
    result = inside_boxes(torch.tensor(boxes), height, width)
    np.testing.assert_array_equal(result.numpy(), _inside(boxes, height, width))


@pytest.mark.parametrize(
    "box, columns, rows",
    [
        ([3, 4, 6, 5], range(2, 7), range(3, 6)),
        ([3.1, 4.1, 6.1, 5.1], range(3, 8), range(4, 7)),
        ([-5, -5, 1, 2], range(0, 2), range(0, 3)),
        ([7, 6, 30, 30], range(6, 10), range(5, 8)),
        ([-9, -9, 90, 90], range(10), range(8)),
        ([-9, 0, -2, 3], [], []),
        ([11, 0, 14, 3], [], []),
        ([5, 5, 5, 5], [4, 5], [4, 5]),
    ],
)
def test_a_margin_of_one_cell_around_the_box(box, columns, rows):
    expected = torch.zeros(8, 10, dtype=torch.bool)
    for row in rows:
        for column in columns:
            expected[row, column] = True
    assert torch.equal(inside_boxes(torch.tensor([box]), 8, 10)[0], expected)


def test_inside_no_boxes():
    assert inside_boxes(torch.zeros(0, 4), 3, 5).shape == (0, 3, 5)


def test_soft_masks_are_sigmoids_inside_their_boxes():
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(3, 5, 7, generator=generator)
    coefficients = torch.randn(2, 3, generator=generator)
    boxes = torch.tensor([[1.2, 1.0, 4.5, 3.5], [3.0, 0.0, 7.0, 2.5]])
    result = soft_masks(prototypes, coefficients, boxes)
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for row in range(5):
            for column in range(7):
                logit = sum(coefficients[n, i] * prototypes[i, row, column] for i in range(3))
                inside = x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1
                expected = 1 / (1 + math.exp(-logit)) if inside else 0
                assert result[n, row, column].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "size, output", [((8, 8), (20, 31)), ((6, 9), (3, 4)), ((9, 7), (4, 25)), ((5, 6), (5, 6))]
)
def test_resize_masks(size, output):
    soft = torch.rand(3, *size, generator=torch.Generator().manual_seed(size[0]))
    expected = [bilinear(mask, *output) > 0.5 for mask in soft.double().numpy()]
    result = resize_masks(soft, output)
    assert result.dtype == torch.bool
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_exactly_half_is_background():
    assert not resize_masks(torch.full((1, 4, 4), 0.5), (8, 8)).any()


@pytest.mark.parametrize("limit, largest", [(1, 1), (3 * 20 * 30 + 7, 3), (10**6, 7)])
def test_masks_resized_in_parts_are_the_same(monkeypatch, limit, largest):
    soft = torch.rand(7, 9, 13, generator=torch.Generator().manual_seed(0))
    expected = resize_masks(soft, (20, 30))
    parts = []

    def interpolate(part, **kwargs):
        parts.append(len(part))
        return original(part, **kwargs)

    original = masks.F.interpolate
    monkeypatch.setattr(masks.F, "interpolate", interpolate)
    monkeypatch.setattr(masks, "_MAX_RESIZED_ELEMENTS", limit)
    assert torch.equal(resize_masks(soft, (20, 30)), expected)
    assert max(parts) == largest and sum(parts) == 7


def test_resizing_no_masks():
    result = resize_masks(torch.zeros(0, 9, 13), (20, 30))
    assert result.shape == (0, 20, 30) and result.dtype == torch.bool


def test_boxes_are_clipped_at_the_sides_that_they_are_nearest_to():
    """A box outside the image keeps the corner that lies there, as in the authors' code."""
    boxes = torch.tensor(
        [
            [0.1, 0.2, 0.5, 0.75],
            [-0.1, -0.2, 1.5, 1.25],
            [1.1, 0.2, 1.5, 0.75],
            [0.1, -0.5, 0.5, -0.25],
        ]
    )
    expected = [[20, 20, 100, 75], [0, 0, 200, 100], [220, 20, 200, 75], [20, 0, 100, -25]]
    torch.testing.assert_close(
        masks.scale_and_clip(boxes, (100, 200)), torch.tensor(expected, dtype=torch.float32)
    )


@pytest.mark.parametrize("seed", range(5))
def test_cell_ranges_are_what_is_inside(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = 30 * torch.rand(40, 4, generator=generator) - 10
    boxes[::2] = boxes[::2].round()
    inside = inside_boxes(boxes, 9, 12)
    for (c1, r1, c2, r2), mask in zip(cell_ranges(boxes, 9, 12).tolist(), inside):
        expected = torch.zeros(9, 12, dtype=torch.bool)
        if c1 < c2 and r1 < r2:
            expected[r1:r2, c1:c2] = True
        assert torch.equal(mask, expected)
    assert inside.any() and not inside.flatten(1).any(dim=1).all()


def _cropped_masks(num=60, height=23, width=31, seed=0):
    """Masks with soft edges, on which half of the cells are above the threshold."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(num, 2, generator=generator) * 1.2 - 0.1
    half = torch.rand(num, 2, generator=generator) * 0.4
    boxes = torch.cat([center - half, center + half], dim=1)
    boxes *= torch.tensor([width, height, width, height])
    soft = torch.rand(num, height, width, generator=generator)
    return soft * inside_boxes(boxes, height, width), boxes


@pytest.mark.parametrize(
    "size", [(1, 1), (7, 9), (23, 31), (37, 500), (230, 31), (427, 640), (1080, 1920)]
)
def test_cropped_masks_resize_like_whole_ones(size):
    soft, boxes = _cropped_masks()
    exact = torch.nn.functional.interpolate(
        soft[:, None].double(), size=size, mode="bilinear", align_corners=False
    )[:, 0]
    result = resize_cropped_masks(soft, boxes, size)
    assert result.shape == (60, *size) and result.dtype == torch.bool
    wrong = result != (exact > 0.5)
    # Only where rounding decides.
    assert ((exact[wrong] - 0.5).abs() < 1e-6).all()
    assert result.any() or size == (1, 1)


def test_on_a_cpu_masks_are_pasted_by_their_boxes():
    soft, boxes = _cropped_masks()
    boxes[:30] = 0
    expected = resize_cropped_masks(soft, boxes, (50, 70))
    assert torch.equal(paste_masks(soft, boxes, (50, 70)), expected)
    assert not torch.equal(expected, resize_masks(soft, (50, 70)))


@pytest.mark.parametrize("limit", [1, 100, 10**6])
def test_cropped_masks_resized_in_parts_are_the_same(monkeypatch, limit):
    soft, boxes = _cropped_masks()
    expected = resize_cropped_masks(soft, boxes, (100, 90))
    monkeypatch.setattr(masks, "_MAX_CPU_ELEMENTS", limit)
    different = resize_cropped_masks(soft, boxes, (100, 90)) != expected
    assert different.float().mean() < 1e-5


def test_cropped_masks_are_resized_in_parts(monkeypatch):
    soft, boxes = _cropped_masks(num=1)
    soft[:], boxes[:] = 1, torch.tensor([0, 0, 31, 23])
    monkeypatch.setattr(masks, "_MAX_CPU_ELEMENTS", 90 * 7)
    parts = []

    def gt(part, threshold, out):
        parts.append(part.shape)
        return torch.greater(part, threshold, out=out)

    monkeypatch.setattr(masks.torch, "gt", gt)
    resize_cropped_masks(soft, boxes, (100, 90))
    assert parts == [(7, 90)] * 14 + [(2, 90)]


def test_exactly_half_is_background_in_cropped_masks_too():
    soft, boxes = torch.full((1, 4, 4), 0.5), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert not resize_cropped_masks(soft, boxes, (8, 8)).any()
    assert resize_cropped_masks(soft + 0.001, boxes, (8, 8)).all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, 1e30, -1e30])
def test_boxes_far_away(value):
    soft = torch.ones(1, 4, 6)
    boxes = torch.tensor([[1.0, 1.0, value, 3.0]])
    expected = resize_masks(soft * inside_boxes(boxes, 4, 6), (9, 9))
    result = resize_cropped_masks(soft * inside_boxes(boxes, 4, 6), boxes, (9, 9))
    assert torch.equal(result, expected) and result.any() == (value > 0)


def test_resizing_no_cropped_masks():
    result = resize_cropped_masks(torch.zeros(0, 9, 13), torch.zeros(0, 4), (20, 30))
    assert result.shape == (0, 20, 30) and result.dtype == torch.bool


@pytest.mark.parametrize("size, new_size", [(5, 12), (9, 4), (6, 6), (1, 3), (4, 1)])
def test_bilinear_weights(size, new_size):
    values = np.arange(size)[None] ** 2 + 1.0
    expected = bilinear(values, 1, new_size)[0]
    values = torch.from_numpy(values[0])
    result = bilinear_weights(size, new_size, values) @ values
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


PEAK_MEMORY = """
import torch
from yolact_d2.benchmark.memory import high_water as peak
from yolact_d2.modeling.masks import paste_masks
def paste(num, box, size):
    return paste_masks(torch.rand(num, 138, 138), torch.tensor([box] * num), size)
paste(2, [0.0, 0.0, 138.0, 138.0], (200, 200))
before = peak()
small = paste(100, [20.0, 20.0, 24.0, 24.0], (2160, 3840))
print(peak() - before)
large = paste(20, [0.0, 0.0, 138.0, 138.0], (2160, 3840))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts with a high mark")
def test_peak_memory_does_not_grow_with_picture_size_times_detections():
    """Beyond the result, and of the result only what the boxes cover counts."""
    done = subprocess.run([sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split())
    # 100 masks of this picture are 829 MB, 20 are 166 MB; in float they are four times as much.
    assert small < 100e6
    assert large - small < 166e6 + 100e6


def test_scale_boxes():
    boxes = scale_boxes(torch.tensor([[0.0, 0.25, 0.5, 1.0]]), (40, 100))
    assert boxes.tolist() == [[0, 10, 50, 40]]
