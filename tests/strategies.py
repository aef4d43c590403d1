"""Hypothesis strategies that several tests share."""

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

seeds = st.integers(0, 2**32 - 1)

finite_floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    # The limits of float32, and numbers that are likely to cancel.
    st.sampled_from([0.0, 1e38, -1e38, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-38]),
)


def tensors(shape, elements=finite_floats):
    """float32 tensors with many equal elements."""
    return arrays_of.arrays(np.float32, shape, elements=elements, fill=elements).map(
        torch.from_numpy
    )


@st.composite
def integer_boxes(draw, max_boxes=12, max_exponent=55):
    """(N, 4) XYXY boxes whose areas and IoUs are exact in float32: integers up to 32, times a
    common power of two. Many are equal, touch, or have no area.
    """
    num = draw(st.integers(0, max_boxes))
    side = draw(st.sampled_from([3, 8, 32]))
    corners = st.lists(st.integers(-side, side), min_size=4, max_size=4)
    boxes = np.array(draw(st.lists(corners, min_size=num, max_size=num))).reshape(num, 4)
    boxes = np.concatenate(
        [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1
    )
    scale = 2.0 ** draw(st.integers(-max_exponent, max_exponent))
    return torch.tensor(boxes * scale, dtype=torch.float32)


@st.composite
def distinct_scores(draw, num, num_classes):
    """(num, num_classes) in 0..1, exact in float32."""
    ranks = draw(st.permutations(range(num * num_classes)))
    values = (np.array(ranks, dtype=np.float32) + 0.5) / 1024
    return torch.tensor(values, dtype=torch.float32).reshape(num, num_classes)


@st.composite
def ground_truths(draw, size, num_classes, min_box_size=4.0, max_objects=4):
    """Ground truth of a size x size image in all forms that the mapper returns: no objects, only
    crowds, equal boxes, smallest boxes; masks that are empty, full, or noise.
    """
    num = draw(st.integers(0, max_objects))
    rng = np.random.default_rng(draw(seeds))
    sides = rng.choice([min_box_size * 1.001, min_box_size * 2, size / 3, size], (num, 2))
    start = rng.uniform(0, 1, (num, 2)) * (size - sides)
    boxes = torch.tensor(np.concatenate([start, start + sides], axis=1), dtype=torch.float32)
    if num > 1 and draw(st.booleans()):
        boxes[1] = boxes[0]
    density = torch.tensor(rng.choice([0.0, 0.02, 0.7, 1.0], (num, 1, 1)))
    masks = torch.from_numpy(rng.random((num, size, size))) < density
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist()):
        outside = torch.ones_like(mask)
        outside[y1:y2, x1:x2] = False
        mask &= ~outside
    gt = Instances((size, size))
    gt.gt_boxes = Boxes(boxes.reshape(-1, 4))
    gt.gt_classes = torch.from_numpy(rng.integers(0, num_classes, num))
    gt.gt_masks = BitMasks(masks)
    gt.gt_iscrowd = torch.tensor(draw(st.lists(st.booleans(), min_size=num, max_size=num))).bool()
    return gt


@st.composite
def images(draw, max_side=120, channels=3):
    """(channels, H, W) in 0..255: noise, one color, or black and white; also 1 x 1 and long."""
    sides = st.integers(1, max_side) | st.sampled_from([1, 2, 10 * max_side])
    height = draw(sides)
    width = draw(sides if height <= max_side else st.integers(1, 8))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["noise", "one color", "black and white"]))
    shape = (channels, height, width) if kind != "one color" else (channels, 1, 1)
    image = rng.uniform(0, 255, shape)
    if kind == "black and white":
        image = np.where(image > 127, 255, 0)
    image = np.broadcast_to(image, (channels, height, width)).astype(np.float32)
    return torch.from_numpy(image.copy())
