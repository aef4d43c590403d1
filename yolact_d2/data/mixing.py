"""Training examples made of several: Simple Copy-Paste (arXiv 2012.07177) and mosaics (arXiv
2004.10934).

An example is a dict with "image", (C, S, S) float32, and "instances", which have `gt_boxes` (XYXY,
pixels), `gt_classes`, `gt_masks` (`BitMasks`) and `gt_iscrowd`, as :class:`YOLACTDatasetMapper`
returns it. Functions leave their arguments as they are.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..modeling.masks import resize_masks
from .images import read_or_replace

Example = dict[str, Any]


def copy_paste(target: Example, source: Example, chosen: Tensor) -> Example:
    """Paste objects of one image on another of the same size, at the same place.

    Args:
        target, source: examples.
        chosen: (M,) bool, which objects of the source are pasted. Crowd regions never are.

    Returns:
        `target` with their pixels and, behind its own instances, their instances. Its own masks
        lose the covered pixels, and boxes of masks that lost some are those of what is left; if
        nothing is left, the box is 0, 0, 0, 0.
    """
    pasted = source["instances"][chosen & ~source["instances"].gt_iscrowd]
    covered = pasted.gt_masks.tensor.any(dim=0)
    below = target["instances"]
    masks = below.gt_masks.tensor
    changed = (masks & covered).flatten(1).any(dim=1)
    left = BitMasks(masks & ~covered)
    boxes = below.gt_boxes.tensor.clone()
    boxes[changed] = left[changed].get_bounding_boxes().tensor
    changes = {"gt_boxes": Boxes(boxes), "gt_masks": left}
    kept = Instances(below.image_size, **{**below.get_fields(), **changes})
    return {
        **target,
        "image": torch.where(covered, source["image"], target["image"]),
        "instances": Instances.cat([kept, pasted]),
    }


def mosaic(examples: Sequence[Example], center: tuple[int, int]) -> Example:
    """Four images in the quadrants of one, each resized to its quadrant.

    Args:
        examples: upper left, upper right, lower left and lower right; the first has the size S x S
            of the result.
        center: x and y where the quadrants meet, in 1..S-1.

    Returns:
        the first example with the image and the instances of all.
    """
    image = torch.empty_like(examples[0]["image"])
    (height, width), (x, y) = image.shape[1:], center
    instances = []
    for i, example in enumerate(examples):
        x0, x1 = (x, width) if i % 2 else (0, x)
        y0, y1 = (y, height) if i >= 2 else (0, y)
        size = y1 - y0, x1 - x0
        image[:, y0:y1, x0:x1] = F.interpolate(example["image"][None], size, mode="bilinear")[0]
        old = example["instances"]
        masks = torch.zeros(len(old), height, width, dtype=torch.bool)
        masks[:, y0:y1, x0:x1] = resize_masks(old.gt_masks.tensor, size)
        boxes = old.gt_boxes.clone()
        boxes.scale(size[1] / old.image_size[1], size[0] / old.image_size[0])
        boxes.tensor += torch.tensor([x0, y0, x0, y0])
        changes = {"gt_boxes": boxes, "gt_masks": BitMasks(masks)}
        instances.append(Instances((height, width), **{**old.get_fields(), **changes}))
    return {**examples[0], "image": image, "instances": Instances.cat(instances)}


class MixedDataset(Dataset):
    """Examples of a dataset, some as mosaics of four of them, some with objects of another pasted.

    Random numbers are those of Python, drawn after an example is mapped, so that its augmentation
    is the same with and without mixing.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        copy_paste_prob: float = 0.0,
        mosaic_prob: float = 0.0,
        min_box_size: float = 0.0,
    ):
        """
        Args:
            dataset: maps an index to an example.
            copy_paste_prob: probability of :func:`copy_paste`, of each object with probability
                1/2. It follows a mosaic.
            mosaic_prob: probability of a :func:`mosaic`, whose center is anywhere in the middle
                half of the image, along x and y.
            min_box_size: objects of mixed images whose box is not wider and higher than this, in
                pixels, are dropped, as are those without a pixel.
        """
        keys = {"COPY_PASTE_PROB": copy_paste_prob, "MOSAIC_PROB": mosaic_prob}
        for key, prob in keys.items():
            if not 0 <= prob <= 1:
                raise ValueError(f"INPUT.AUG.{key} is {prob}, not in 0..1")
        self._dataset = dataset
        self._copy_paste_prob = copy_paste_prob
        self._mosaic_prob = mosaic_prob
        self._min_box_size = min_box_size

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        """The example; "unreadable" lists the errors of images that others were mixed in for.

        Raises:
            UnreadableImage: if the image of the index itself cannot be read.
        """
        example = self._dataset[index]
        is_mosaic = random.random() < self._mosaic_prob
        is_pasted = random.random() < self._copy_paste_prob
        if not is_mosaic and not is_pasted:
            return example
        unreadable: list[str] = []
        if is_mosaic:
            others = [self._other(index, unreadable) for _ in range(3)]
            height, width = example["image"].shape[1:]
            center = tuple(random.randint(side // 4, 3 * side // 4) for side in (width, height))
            example = mosaic([example, *others], center)  # type: ignore[arg-type]
        if is_pasted:
            source = self._other(index, unreadable)
            chosen = [random.random() < 0.5 for _ in range(len(source["instances"]))]
            example = copy_paste(example, source, torch.tensor(chosen, dtype=torch.bool))
        instances = example["instances"]
        kept = instances.gt_boxes.nonempty(self._min_box_size) & instances.gt_masks.nonempty()
        return {**example, "instances": instances[kept], "unreadable": unreadable}

    def _other(self, index: int, unreadable: list[str]) -> Example:
        """A random example, of another index if there is one; adds errors to `unreadable`."""
        distance = random.randrange(1, max(len(self), 2))
        other = (index + distance) % len(self)
        example, errors = read_or_replace(self._dataset, other)
        unreadable += errors
        return example
