"""Box coding, matching and the place of masks, for whatever boxes."""

import numpy as np
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import base_cfg, greedy_claims
from strategies import grid_boxes, seeds

from yolact_d2.modeling import matcher
from yolact_d2.modeling.masks import (
    paste_masks,
    resize_cropped_masks,
    resize_masks,
    soft_masks,
)
from yolact_d2.modeling.matcher import FOREGROUND, claim_best_anchors, match_anchors

CODING = Box2BoxTransform(weights=base_cfg().MODEL.YOLACT.BBOX_REG_WEIGHTS)
EPS = torch.finfo(torch.float32).eps


# The coding clamps what is more than 1000 / 16 times as large as its anchor.
SIZES = (0.02, 1.2)


def _boxes(seed, unit, num=40):
    """(num, 4) XYXY around the square from 0 to `unit`."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-1, 2, (num, 2))
    sizes = np.exp(rng.uniform(*np.log(SIZES), (num, 2)))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
    return torch.tensor(boxes * unit, dtype=torch.float32)


def _sizes(boxes):
    return (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


@settings(max_examples=50)
@given(seeds, seeds, st.sampled_from([1, 550]))
def test_decoding_inverts_encoding(seed, other_seed, unit):
    anchors, boxes = _boxes(seed, unit), _boxes(other_seed, unit)
    found = CODING.apply_deltas(CODING.get_deltas(anchors, boxes), anchors)
    # Every step rounds; what counts is how large the numbers in it are. The logarithm of the ratio
    # of the sizes has an error in proportion to itself, the exponential makes a factor of it.
    numbers = anchors.abs().amax(dim=1, keepdim=True) + boxes.abs().amax(dim=1, keepdim=True)
    factors = 1 + (_sizes(boxes) / _sizes(anchors)).log().abs()
    tolerance = 4 * EPS * (numbers + factors * _sizes(boxes))
    assert ((found - boxes).abs() <= tolerance).all()


@settings(max_examples=50)
@given(seeds, seeds, st.sampled_from([1, 550]))
def test_encoding_inverts_decoding_up_to_the_clamp(seed, other_seed, unit):
    anchors = _boxes(other_seed, unit)
    weights = torch.tensor(CODING.weights)
    rng = np.random.default_rng(seed)
    deltas = torch.tensor(rng.uniform(-4, 4, (40, 4)), dtype=torch.float32) * weights
    deltas[:4, 2:] = weights[2:] * torch.tensor([4.1, 4.2, 10, 1e6])[:, None]  # of log(1000 / 16)
    boxes = CODING.apply_deltas(deltas, anchors)
    found = CODING.get_deltas(anchors, boxes)
    expected = deltas.clone()
    expected[:, 2:] = expected[:, 2:].minimum(weights[2:] * CODING.scale_clamp)
    # The corners round in proportion to where they are, the sizes are their differences.
    numbers = boxes.abs().amax(dim=1, keepdim=True) + anchors.abs().amax(dim=1, keepdim=True)
    of_places = numbers / _sizes(anchors)[:, :2]
    of_sizes = numbers * (1 / _sizes(boxes) + 1 / _sizes(anchors))[:, :2]
    relative = torch.cat([of_places, of_sizes], dim=1) + (expected / weights).abs()
    assert ((found - expected).abs() <= 4 * EPS * weights * (1 + relative)).all()


@st.composite
def _ious(draw):
    num_gt, num_anchors = draw(st.integers(0, 9)), draw(st.integers(0, 12))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)
    total = num_gt * num_anchors
    values = draw(st.lists(values, min_size=total, max_size=total))
    return np.array(values, dtype=np.float32).reshape(num_gt, num_anchors)


@settings(max_examples=300)
@given(_ious())
def test_claims_are_those_of_the_greedy_loop(iou):
    assert claim_best_anchors(torch.from_numpy(iou.copy())).tolist() == greedy_claims(iou)


@settings(max_examples=200)
@given(
    grid_boxes(max_boxes=12, max_exponent=5),
    grid_boxes(max_boxes=8, max_exponent=5),
    grid_boxes(max_boxes=3, max_exponent=5),
)
def test_every_object_has_an_anchor_of_its_own_if_there_are_enough(anchors, objects, crowds):
    """Whatever overlaps whatever: equal boxes, none in reach, crowds over everything."""
    matches, labels = match_anchors(Boxes(anchors), Boxes(objects), Boxes(crowds), (0.4, 0.5), 0.7)
    owned = set(matches[labels == FOREGROUND].tolist())
    if len(anchors) >= len(objects):
        assert owned == set(range(len(objects)))
    else:
        assert len(owned) == len(anchors) == int((labels == FOREGROUND).sum())


@settings(max_examples=50)
@given(grid_boxes(8, 5), grid_boxes(8, 5), grid_boxes(5, 5), st.integers(1, 20))
def test_matched_in_parts_is_the_same(anchors, objects, crowds, limit):
    arguments = (Boxes(anchors), Boxes(objects), Boxes(crowds), (0.4, 0.5), 0.7)
    expected = match_anchors(*arguments)
    before, matcher._MAX_PAIRS = matcher._MAX_PAIRS, limit
    try:
        found = match_anchors(*arguments)
    finally:
        matcher._MAX_PAIRS = before
    for x, y in zip(found, expected):
        assert torch.equal(x, y)


# What rounding adds, in cells.
SLACK = 1e-3


def _assert_in_margin(masks, boxes, grid, size):
    """Pixel centres less than one cell before the box, and less than two after it."""
    cells = [(torch.arange(n) + 0.5) * c / n for n, c in zip(size, grid)]
    y = cells[0][None, :, None].expand(len(masks), *size)
    x = cells[1][None, None, :].expand(len(masks), *size)
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(dim=1)
    allowed = (x > x1 - 1 - SLACK) & (x < x2 + 2 + SLACK)
    allowed &= (y > y1 - 1 - SLACK) & (y < y2 + 2 + SLACK)
    assert not (masks & ~allowed).any()


_sides = st.sampled_from([1, 2, 3, 7, 20, 64, 131])


@settings(max_examples=150)
@given(seeds, st.integers(1, 12), st.integers(1, 12), _sides, _sides, st.booleans())
def test_masks_leave_their_boxes_by_the_margin_at_most(seed, rows, columns, height, width, full):
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
    for masks in (
        resize_masks(soft, (height, width)),
        resize_cropped_masks(soft, boxes, (height, width)),
    ):
        _assert_in_margin(masks, boxes, (rows, columns), (height, width))


def test_the_margin_is_used():
    """The cells 2 to 6 of a box from 3 to 5.01, at 10 pixels a cell."""
    boxes = torch.tensor([[3.0, 3.0, 5.01, 5.01]])
    soft = soft_masks(torch.full((1, 12, 12), 50.0), torch.ones(1, 1), boxes)
    for masks in (resize_masks(soft, (120, 120)), paste_masks(soft, boxes, (120, 120))):
        for axis in (0, 1):
            assert masks[0].any(dim=axis).nonzero().flatten().tolist() == list(range(20, 70))
