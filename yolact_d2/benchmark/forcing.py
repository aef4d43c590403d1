"""Random weights, made fit for measuring: sane features, and a fixed number of detections."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.masks import scale_boxes
from .anatomy import Anatomy
from .planted import CANDIDATES_PER_OBJECT, plant_candidates

# Rounding makes scores of a picture differ a little from call to call.
_SPARE = 1.1


class _ReachedNMS(Exception):
    """Ends a forward pass that has shown its scores."""


@torch.no_grad()
def balance_features(backbone: nn.Module, forward: Callable[[], object]) -> None:
    """Scale each convolution of a backbone so that its output has unit variance.

    After Mishkin and Matas (arXiv 1511.06422). With the statistics of ImageNet in no layer, random
    features grow from block to block, and no finite box is left in an R-CNN.

    Args:
        forward: runs the model once.
    """

    def scale(convolution: nn.Module, _, output: Tensor) -> Tensor:
        deviation = output.float().std().clamp(min=1e-6)
        convolution.weight.div_(deviation)
        return output / deviation

    hooks = [
        module.register_forward_hook(scale)
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()


class ForcedDetections:
    """Lets a model find the same objects in every picture, whatever its weights.

    The model's threshold is lowered until enough candidates reach NMS on every picture. There the
    first of them are overwritten, in place, by candidates around made-up objects, and the others
    are left out. So NMS works on the same boxes and scores in all models, and mask stages on the
    same detections. Nothing else is changed: the network computes what it computes.
    """

    def __init__(self, anatomy: Anatomy, num_classes: int, number: int):
        """
        Args:
            num_classes: C, without background.
            number: of detections. The model must be limited to it, too.
        """
        self.anatomy = anatomy
        self.num_classes = num_classes
        self.number = number
        self.num_candidates = CANDIDATES_PER_OBJECT * number
        self.arrived: tuple[int, int] = (0, 0)
        """The least and the most candidates of a picture above the threshold."""

    def calibrate(
        self, forward: Callable[[list[dict]], object], inputs: Iterable[list[dict]]
    ) -> None:
        """Set the model's threshold.

        Args:
            forward: runs the model.
            inputs: batches of one image.

        Raises:
            ValueError: if there are not even candidates for the detections.
        """
        self.anatomy.threshold.set(-1.0)
        pictures = [self._scores(forward, x) for x in inputs]
        fewest = min(map(len, pictures))
        if fewest < self.number:
            raise ValueError(
                f"{self.number} detections cannot be forced: the model has but {fewest} boxes"
            )
        ranks = [min(len(s), math.ceil(_SPARE * self.num_candidates)) - 1 for s in pictures]
        lowest = torch.stack([scores[rank] for scores, rank in zip(pictures, ranks)]).amin()
        # Just below: the model compares in the precision of its scores.
        limits = torch.finfo(lowest.dtype)
        threshold = lowest.item() * (1 - limits.eps) - limits.tiny
        self.anatomy.threshold.set(threshold)
        counts = [int((scores > threshold).sum()) for scores in pictures]
        self.arrived = (min(counts), max(counts))

    def _scores(self, forward: Callable[[list[dict]], object], inputs: list[dict]) -> Tensor:
        """Scores (N,) of all that could reach NMS, best first."""
        found = []

        def show(nms):
            def shown(boxes, scores, *args, **kwargs):
                found.append(scores.amax(dim=1) if scores.dim() == 2 else scores)
                raise _ReachedNMS

            return shown

        with self.anatomy.final_nms.replaced(show):
            try:
                forward(inputs)
            except _ReachedNMS:
                pass
        return found[0].sort(descending=True).values

    @contextmanager
    def active(self, inputs: list[dict]) -> Iterator[None]:
        """While it lasts, the model may be called once, with `inputs`."""
        sizes = iter(self.anatomy.box_sizes(inputs))

        def wrap(nms):
            def forced(boxes, scores, *args, **kwargs):
                number = min(len(boxes), self.num_candidates)
                kept = boxes[:number], scores[:number], *(classes[:number] for classes in args[:1])
                self._plant(next(sizes), *kept)
                return nms(*kept, *args[1:], **kwargs)

            return forced

        with self.anatomy.final_nms.replaced(wrap):
            yield

    def _plant(self, size: tuple[int, int], boxes: Tensor, scores: Tensor, *classes: Tensor):
        """Overwrite the candidates (N, 4), (N, C) or (N,) and, in the latter case, (N,)."""
        planted = _planted(self.number, len(boxes), size, self.num_classes, boxes.device)
        boxes.copy_(planted.boxes)
        scores.copy_(planted.class_scores if scores.dim() == 2 else planted.scores)
        for tensor in classes:
            tensor.copy_(planted.classes)


class _Planted(NamedTuple):
    boxes: Tensor
    """(N, 4) XYXY, in units of the model."""
    scores: Tensor
    """(N,)"""
    class_scores: Tensor
    """(N, C), zero in all classes but that of the object."""
    classes: Tensor
    """(N,)"""


@lru_cache(maxsize=64)
def _planted(
    num_objects: int, number: int, size: tuple[int, int], num_classes: int, device: torch.device
) -> _Planted:
    candidates = plant_candidates(num_objects, number)
    classes = candidates.objects % num_classes
    class_scores = torch.zeros(number, num_classes)
    class_scores.scatter_(1, classes[:, None], candidates.scores[:, None])
    planted = scale_boxes(candidates.boxes, size), candidates.scores, class_scores, classes
    return _Planted(*(tensor.to(device) for tensor in planted))
