"""EmbedMask's targets against plain loops."""

import math

import numpy as np
import torch
from plain import bilinear

from yolact_d2.modeling.embedmask.targets import (
    Locations,
    assign_objects,
    best_locations,
    box_distances,
    centerness,
    masks_at_stride_4,
)

RANGES = {8: (-1, 20), 16: (20, 40), 32: (40, math.inf)}


def grid(height, width):
    """The locations of three levels, as (stride, x, y)."""
    return [
        (s, s * j + s / 2, s * i + s / 2)
        for s in RANGES
        for i in range(math.ceil(height / s))
        for j in range(math.ceil(width / s))
    ]


def assign_by_loop(cells, boxes, masks):
    assigned = []
    for s, x, y in cells:
        found = []
        for g, (x1, y1, x2, y2) in enumerate(boxes):
            left, right = max((x1 + x2) / 2 - 1.5 * s, x1), min((x1 + x2) / 2 + 1.5 * s, x2)
            top, bottom = max((y1 + y2) / 2 - 1.5 * s, y1), min((y1 + y2) / 2 + 1.5 * s, y2)
            largest = max(x - x1, x2 - x, y - y1, y2 - y)
            if not (left < x < right and top < y < bottom):
                continue
            if not RANGES[s][0] <= largest <= RANGES[s][1]:
                continue
            height, width = masks[g].shape
            if x < width and y < height and masks[g][int(y), int(x)]:
                found.append(((x2 - x1 + 1) * (y2 - y1 + 1), g))
        assigned.append(min(found)[1] if found else -1)
    return assigned


def test_assign_objects_equals_the_loop():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(30, 120, 2)
        cells = grid(height + 13, width + 20)  # padding too
        corners = rng.integers(0, [width, height], (7, 2, 2)).astype(np.float32)
        corners[:3] = np.round(corners[:3] / 8) * 8  # ties: on borders and at limits of ranges
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1)
        masks = rng.random((7, height, width)) < 0.7
        cell = torch.tensor(cells)
        ranges = torch.tensor([RANGES[s] for s, *_ in cells], dtype=torch.float32)
        locations = Locations(cell[:, 1:], cell[:, 0], ranges)
        result = assign_objects(locations, torch.tensor(boxes), torch.tensor(masks), 1.5)
        assert result.tolist() == assign_by_loop(cells, boxes.tolist(), masks)
        nothing = assign_objects(locations, torch.zeros(0, 4), torch.zeros(0, 9, 9).bool(), 1.5)
        assert nothing.tolist() == [-1] * len(cells)


def test_best_locations_equal_the_loop():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        assigned = torch.randint(-1, 4, (12,), generator=generator)
        ious = torch.randint(0, 4, (12,), generator=generator) / 4  # with ties
        best, has_location = best_locations(assigned, ious, 5)
        for g in range(5):
            own = [i for i in range(12) if assigned[i] == g]
            assert has_location[g] == bool(own)
            if own:
                assert best[g] == max(own, key=lambda i: (ious[i].item(), -i))


def test_centerness_and_distances():
    points = torch.tensor([[10.0, 10.0], [12.0, 30.0]])
    distances = box_distances(points, torch.tensor([8.0, 6.0, 20.0, 38.0]))
    assert distances.tolist() == [[2, 4, 10, 28], [4, 24, 8, 8]]
    expected = [math.sqrt(2 / 10 * 4 / 28), math.sqrt(4 / 8 * 8 / 24)]
    torch.testing.assert_close(centerness(distances), torch.tensor(expected))


def test_masks_at_stride_4_are_where_a_resize_is_above_0():
    for seed, (height, width) in enumerate([(64, 32), (41, 50), (3, 7), (1, 2)]):
        masks = np.random.default_rng(seed).random((3, height, width)) < 0.05
        padded = np.zeros((3, 64, 64))
        padded[:, :height, :width] = masks
        expected = np.stack([bilinear(mask, 16, 16) for mask in padded]) > 0
        result = masks_at_stride_4(torch.tensor(masks), (16, 16))
        np.testing.assert_array_equal(result.numpy(), expected)
