"""A model with symmetric weights finds in a flipped picture what it finds in the picture, flipped.

What is not symmetric: the crop of the masks, see :func:`inside_boxes`. So masks are compared where
both crops let everything in: in the boxes but for half a cell at their sides.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import tiny_yolact, with_double_network
from strategies import seeds
from torch import nn
from torch.nn import functional as F

# Of 2**n + 1 pixels the first and the last are seen by every second position of a stride of 2. The
# levels are 17, 9, 5, 3 and 2 cells wide.
SIZE, GRID = 129, 34


@pytest.fixture(scope="module")
def model():
    """Few candidates, or some IoU among their many pairs would be as near to the threshold as the
    anchors round."""
    model = tiny_yolact(size=SIZE, MODEL__YOLACT__TOPK_CANDIDATES_TEST=40)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
        # To the left of the anchor becomes to the right of it: dx is every fourth output.
        head = model.head.bbox_pred
        generator = torch.Generator().manual_seed(0)
        dx = torch.randn(head.weight[0::4].shape, generator=generator) * 0.1
        head.weight[0::4] = dx - dx.flip(3)
        head.bias[0::4] = 0
        model.head.mask_coefficients.weight *= 10
        model.protonet.prototypes.weight *= 10
    return with_double_network(model).eval()


def _flip(boxes, width):
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def _inner(boxes, size):
    """(N, height, width) the pixels in the boxes, half a cell and a little away from the sides."""
    step = torch.tensor([size[1], size[0]]) / GRID * 0.51
    y, x = (torch.arange(n) + 0.5 for n in size)
    x1, y1 = (boxes[:, :2] + step)[:, :, None, None].unbind(dim=1)
    x2, y2 = (boxes[:, 2:] - step)[:, :, None, None].unbind(dim=1)
    inside_x = (x[None, None] > x1) & (x[None, None] < x2)
    return inside_x & (y[None, :, None] > y1) & (y[None, :, None] < y2)


def _distances(boxes, found, expected):
    """(N, M) between detections, nearly equal scores of which may be in another order."""
    distance = torch.cdist(boxes, expected.pred_boxes.tensor, p=torch.inf)
    distance /= max(found.image_size)
    distance += (found.scores[:, None] - expected.scores).abs()
    return distance + (found.pred_classes[:, None] != expected.pred_classes).float()


def test_the_levels_are_symmetric(model):
    with torch.no_grad():
        levels = model.backbone(torch.rand(1, 3, SIZE, SIZE, dtype=torch.double))
    assert [x.shape[3] for x in levels.values()] == [17, 9, 5, 3, 2]


@settings(max_examples=10)
@given(seeds, st.integers(20, 160), st.integers(20, 160))
def test_flipping_the_picture_flips_the_result(model, seed, height, width):
    # Blotches: what is symmetric by itself has two halves of equal scores, any of which may win.
    blotches = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 255
    image = F.interpolate(blotches, (height, width), mode="bilinear")[0]
    with torch.no_grad():
        expected = model([{"image": image}])[0]["instances"]
        found = model([{"image": image.flip(2)}])[0]["instances"]
    assert len(found) == len(expected) > 0

    distance = _distances(_flip(found.pred_boxes.tensor, width), found, expected)
    nearest, partner = distance.min(dim=1)
    assert nearest.max() < 1e-5
    assert len(partner.unique()) == len(found)
    # Without the flip they are others.
    assert _distances(found.pred_boxes.tensor, found, expected).min(dim=1).values.max() > 1e-2

    boxes = expected.pred_boxes.tensor

    same = found.pred_masks.flip(2) == expected.pred_masks[partner]
    inner = _inner(boxes[partner], image.shape[1:])
    assert (inner & found.pred_masks.flip(2)).any()
    # Only where rounding decides.
    assert (inner & ~same).float().mean() < 1e-4
