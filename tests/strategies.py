"""What Hypothesis draws for several tests."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

seeds = st.integers(0, 2**32 - 1)

finite_floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    # The ends of what float32 holds, and what is most likely to cancel.
    st.sampled_from([0.0, 1e38, -1e38, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-38]),
)


def tensors(shape, elements=finite_floats):
    """float32 tensors, most elements of which are alike."""
    return arrays_of.arrays(
        np.float32, shape, elements=elements, fill=elements
    ).map(torch.from_numpy)


@st.composite
def grid_boxes(draw, max_boxes=12, max_exponent=55):
    """(N, 4) XYXY whose areas and IoUs are exact in float32, so that plain loops in double find the
    same: integers up to 32, times a power of two for all. Many are equal, touch, or have no area.
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
def scores(draw, num, num_classes, distinct):
    """(num, num_classes) in 0..1, exact in float32."""
    total = num * num_classes
    if distinct:
        ranks = draw(st.permutations(range(total)))
    else:
        ranks = draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
    values = (np.array(ranks, dtype=np.float32) + 0.5) / 1024
    return torch.tensor(values, dtype=torch.float32).reshape(num, num_classes)
