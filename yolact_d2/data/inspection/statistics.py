"""Counts and sizes of a COCO JSON, and what a model's input size would lose of it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_SMALL, _LARGE = 32, 96  # COCO's, sides of squares in pixels


class ClassCount(NamedTuple):
    """One class, or all of them."""

    name: str
    category_id: Any
    num_images: int
    """Images with an object or a crowd region of the class."""
    num_objects: int
    """Without crowd regions, which are never targets."""
    num_crowds: int
    num_lost: list[int]
    """Objects that each of the input sizes would lose, see :func:`count_lost`."""


class Statistics(NamedTuple):
    num_images: int
    num_annotated: int
    """Images with an object or a crowd region. Training leaves out the others."""
    image_sizes: np.ndarray
    """(I, 2) width and height, in pixels."""
    object_sizes: np.ndarray
    """(O, 2) width and height of the boxes without crowd regions, in pixels of their images."""
    objects_per_image: np.ndarray
    """(I,)"""
    classes: list[ClassCount]
    """In the order of their ids, which is that of the model's classes."""
    total: ClassCount


def count_lost(
    boxes: np.ndarray, image_sizes: np.ndarray, input_size: int, min_box_size: float
) -> int:
    """How many objects become too small when their images are resized to a square.

    The aspect ratio is not kept: a box of width w in an image of width W is w / W x S wide. As in
    training, an object counts as lost if that, or the height, is not above the minimum.

    Args:
        boxes: (O, 2) width and height, in pixels.
        image_sizes: (O, 2) of the images that they are in, or (1, 2).
        input_size: S, in pixels.
        min_box_size: INPUT.MIN_BOX_SIZE, in pixels at S.
    """
    return int((boxes / image_sizes * input_size <= min_box_size).any(axis=1).sum())


def collect_statistics(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    input_sizes: Sequence[int],
    min_box_size: float,
) -> Statistics:
    """
    Args:
        images: records with distinct ids.
        annotations: of these images and categories, with proper boxes.
        categories: records with distinct ids.
        input_sizes, min_box_size: see :func:`count_lost`.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    by_class, per_image = defaultdict(list), Counter()
    for annotation in annotations:
        by_class[annotation["category_id"]].append(annotation)
        per_image[annotation["image_id"]] += annotation.get("iscrowd", 0) != 1

    def count(name: str, category_id: Any, members: Sequence[dict[str, Any]]) -> ClassCount:
        objects = [a for a in members if a.get("iscrowd", 0) != 1]
        boxes = _visible_sizes(objects, sizes)
        image_sizes = np.array([sizes[a["image_id"]] for a in objects], float).reshape(-1, 2)
        return ClassCount(
            name,
            category_id,
            len({a["image_id"] for a in members}),
            len(objects),
            len(members) - len(objects),
            [count_lost(boxes, image_sizes, size, min_box_size) for size in input_sizes],
        )

    return Statistics(
        len(images),
        len(per_image),
        np.array(list(sizes.values()), float).reshape(-1, 2),
        _visible_sizes([a for a in annotations if a.get("iscrowd", 0) != 1], sizes),
        np.array([per_image[image["id"]] for image in images]),
        [
            count(category["name"], category["id"], by_class[category["id"]])
            for category in sorted(categories, key=lambda c: c["id"])
        ],
        count("all", "", annotations),
    )


def _visible_sizes(annotations: Sequence[dict[str, Any]], sizes: dict[Any, Any]) -> np.ndarray:
    """(O, 2) width and height of boxes as far as they are in their pictures."""
    visible = np.zeros((len(annotations), 2))
    for out, annotation in zip(visible, annotations):
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        out[:] = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    return visible.clip(min=0)


def format_statistics(statistics: Statistics, input_sizes: Sequence[int]) -> str:
    """A report for people, in lines."""
    s = statistics
    areas = s.object_sizes.prod(axis=1)
    lines = [
        f"{s.num_images} images, {s.num_images - s.num_annotated} of them without annotations, "
        "which training leaves out",
        f"{s.total.num_objects} objects and {s.total.num_crowds} crowd regions of "
        f"{len(s.classes)} classes",
        "",
        f"{'':24}{'least':>8}{'median':>8}{'most':>8}",
        _spread("width of images, px", s.image_sizes[:, 0]),
        _spread("height of images, px", s.image_sizes[:, 1]),
        _spread("objects of an image", s.objects_per_image),
        _spread("width of objects, px", s.object_sizes[:, 0]),
        _spread("height of objects, px", s.object_sizes[:, 1]),
        f"boxes smaller than {_SMALL} x {_SMALL} px: {(areas < _SMALL**2).sum()}, larger than "
        f"{_LARGE} x {_LARGE} px: {(areas > _LARGE**2).sum()}",
        "",
        "lost at S: not more than INPUT.MIN_BOX_SIZE wide or high in the S x S input",
        f"{'class':24}{'id':>8}{'images':>8}{'objects':>8}{'crowds':>8}"
        + "".join(f"{f'lost {size}':>10}" for size in input_sizes),
    ]
    for c in [*s.classes, s.total]:
        counts = "".join(f"{n:>8}" for n in (c.num_images, c.num_objects, c.num_crowds))
        lost = "".join(f"{n:>10}" for n in c.num_lost)
        lines.append(f"{c.name[:23]:24}{c.category_id!s:>8}{counts}{lost}")
    return "\n".join(lines)


def _spread(name: str, values: np.ndarray) -> str:
    if len(values) == 0:
        return f"{name:24}{'-':>8}{'-':>8}{'-':>8}"
    return f"{name:24}{values.min():>8g}{np.median(values):>8g}{values.max():>8g}"
