"""Masks from windows equal those that the specification computes on whole grids."""

import math

import pytest
import torch
from torch.nn import functional as F

from yolact_d2.modeling import masks as shared_masks
from yolact_d2.modeling.embedmask import masks
from yolact_d2.modeling.embedmask.losses import log_probability


def paste_whole_grids(pixels, q, m, boxes, input_size, size):
    v = log_probability(pixels, q, m).double()
    rows, columns = torch.arange(v.shape[1])[:, None], torch.arange(v.shape[2])
    for mask, box in zip(v, boxes.tolist()):
        x1, y1, x2, y2 = (math.trunc(c / 4) for c in box)
        inside = (columns >= x1 - 2) & (columns < x2 + 2) & (rows >= y1 - 2) & (rows < y2 + 2)
        mask[~inside] = -10
    resized = [math.ceil(4 * g * s / i) for g, s, i in zip(v.shape[1:], size, input_size)]
    v = F.interpolate(v[:, None], size=resized, mode="bilinear", align_corners=False)[:, 0]
    return v[:, : size[0], : size[1]] - math.log(0.53)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_paste_masks_equals_whole_grids(on_gpu, monkeypatch):
    if on_gpu:  # whole grids, as in tracing, two or three at a time
        monkeypatch.setattr(masks, "is_tracing", lambda: True)
        monkeypatch.setattr(shared_masks, "_MAX_PIXELS", 2**17)
    for seed, (input_size, size) in enumerate(
        [
            ((120, 90), (240, 180)),
            ((120, 90), (37, 500)),
            ((64, 64), (64, 64)),
            ((50, 126), (1, 1)),
            ((33, 1), (99, 3)),
        ]
    ):
        generator = torch.Generator().manual_seed(seed)
        grid = [8 * math.ceil(side / 32) for side in input_size]
        pixels = torch.randn(5, *grid, generator=generator)
        q = torch.randn(9, 5, generator=generator)
        m = torch.rand(9, 5, generator=generator) * 0.3
        height, width = input_size
        corners = torch.rand(9, 2, 2, generator=generator) * torch.tensor([width - 1, height - 1])
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        boxes[0] = torch.tensor([0, 0, width - 1, height - 1])
        boxes[1] = torch.tensor([width - 1, height - 1] * 2)  # without area
        expected = paste_whole_grids(pixels, q, m, boxes, input_size, size)
        result = masks.paste_masks(pixels, q, m, boxes, input_size, size, 0.53)
        assert result.shape == (9, *size)
        decided = expected.abs() > 1e-5
        assert torch.equal(result[decided], (expected > 0)[decided])
        assert result.any() or size == (1, 1)
