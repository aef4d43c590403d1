"""Made-up objects, the same for all models, and candidates around them."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Anchors or boxes around each object that reach NMS.
CANDIDATES_PER_OBJECT = 5
# The square root of an object's area, relative to the picture's: from a few pixels to large.
_SIZE = (0.03, 0.6)
_ASPECT = (0.5, 2.0)
# Below any threshold of NMS in use, so that no object suppresses another.
_MAX_OVERLAP = 0.3
# Most that a side of a candidate is off its object's, relative to it: an IoU of at least 0.7.
_JITTER = 0.08
_TRIES = 100


class Candidates(NamedTuple):
    """What reaches NMS: first the objects' best boxes, then others around them, best first."""

    boxes: Tensor
    """(N, 4) XYXY, relative to the picture."""
    objects: Tensor
    """(N,) which object each is around."""
    scores: Tensor
    """(N,) in 0..1, falling."""


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) with each of others (N, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = sides.clip(0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return both / (areas - both)


def random_boxes(number: int, seed: int = 0) -> np.ndarray:
    """Boxes (number, 4) XYXY relative to the picture, of all sizes, that overlap little."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((0, 4))
    smallest, largest = _SIZE
    while len(boxes) < number:
        for _ in range(_TRIES):
            size = np.exp(rng.uniform(*np.log((smallest, largest))))
            stretch = np.exp(rng.uniform(*np.log(_ASPECT)) / 2)
            sides = size * np.array([stretch, 1 / stretch])
            start = rng.uniform(size=2) * (1 - sides)
            box = np.concatenate([start, start + sides])
            if not (_iou(box, boxes) > _MAX_OVERLAP).any():
                boxes = np.concatenate([boxes, box[None]])
                break
        else:
            # The picture is full; smaller ones find room.
            largest *= 0.8
            smallest = min(smallest, largest / 2)
    return boxes


@cache
def plant_candidates(num_objects: int, number: int) -> Candidates:
    """
    Args:
        num_objects: how many of the candidates NMS will keep.
        number: of candidates, `num_objects` at least.
    """
    rng = np.random.default_rng(1)
    objects = np.arange(number) % num_objects
    boxes = random_boxes(num_objects)[objects]
    jitter = rng.uniform(-_JITTER, _JITTER, size=boxes.shape)
    jitter[:num_objects] = 0
    boxes = boxes + jitter * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    # No suppressed candidate is better than an object: in Fast NMS it would suppress all the same.
    scores = np.concatenate(
        [np.linspace(0.99, 0.9, num_objects), np.linspace(0.6, 0.3, number - num_objects)]
    )
    return Candidates(
        torch.as_tensor(boxes.clip(0, 1), dtype=torch.float32),
        torch.as_tensor(objects),
        torch.as_tensor(scores, dtype=torch.float32),
    )
