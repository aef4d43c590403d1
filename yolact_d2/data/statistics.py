"""Counts and sizes of a COCO dataset, and what a model's input size would lose of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_SMALL, _LARGE = 32, 96  # COCO's, sides of squares in pixels

Record = dict[str, Any]


class ClassCount(NamedTuple):
    """One class, or all of them."""

    name: str
    category_id: Any
    num_images: int
    num_objects: int
    """Without crowd regions, which are never targets."""
    num_crowds: int
    num_lost: list[int]
    """Objects that are too small at each of the input sizes, see :func:`too_small`."""


class Statistics(NamedTuple):
    image_sizes: np.ndarray
    """(I, 2) width and height, in pixels."""
    object_sizes: np.ndarray
    """(O, 2) width and height of the boxes without crowd regions, in pixels of their images."""
    objects_per_image: np.ndarray
    """(I,)"""
    classes: list[ClassCount]
    """In the order of the model's classes; the last is the total."""


def too_small(
    box_sizes: np.ndarray, image_sizes: np.ndarray, input_size: int, min_box_size: float
) -> np.ndarray:
    """Which objects training drops when their images are resized to a square, (O,) bool.

    Args:
        box_sizes: (O, 2) width and height, in pixels.
        image_sizes: (O, 2) of the images that they are in.
        input_size: side of the square, in pixels.
        min_box_size: INPUT.MIN_BOX_SIZE, in pixels of the square.
    """
    return (box_sizes / image_sizes * input_size <= min_box_size).any(axis=1)


def collect_statistics(
    images: Sequence[Record],
    annotations: Sequence[Record],
    categories: Sequence[Record],
    input_sizes: Sequence[int],
    min_box_size: float,
) -> Statistics:
    """
    Args:
        images, categories: records of a COCO JSON with distinct ids.
        annotations: usable ones, of these images and categories.
        input_sizes, min_box_size: see :func:`too_small`.
    """
    index = {image["id"]: number for number, image in enumerate(images)}
    image = np.array([index[a["image_id"]] for a in annotations], int)
    category = np.array([a["category_id"] for a in annotations], int)
    is_crowd = np.array([a.get("iscrowd", 0) == 1 for a in annotations], bool)
    image_sizes = np.array([(x["width"], x["height"]) for x in images], float).reshape(-1, 2)
    boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
    high = (boxes[:, :2] + boxes[:, 2:]).clip(0, image_sizes[image])
    sizes = high - boxes[:, :2].clip(0, image_sizes[image])  # of the visible parts
    lost = [too_small(sizes, image_sizes[image], s, min_box_size) for s in input_sizes]

    def count(name: str, category_id: Any, members: np.ndarray) -> ClassCount:
        objects = members & ~is_crowd
        num_lost = [int((objects & x).sum()) for x in lost]
        num_crowds = int((members & is_crowd).sum())
        num_images = len(np.unique(image[members]))
        return ClassCount(name, category_id, num_images, int(objects.sum()), num_crowds, num_lost)

    classes = [
        count(c["name"], c["id"], category == c["id"])
        for c in sorted(categories, key=lambda c: c["id"])
    ]
    total = count("all", "", np.ones(len(annotations), bool))
    per_image = np.bincount(image[~is_crowd], minlength=len(images))
    return Statistics(image_sizes, sizes[~is_crowd], per_image, [*classes, total])


def format_statistics(statistics: Statistics, input_sizes: Sequence[int]) -> str:
    """A report in lines."""
    image_sizes, object_sizes, per_image, classes = statistics
    total, areas = classes[-1], object_sizes.prod(axis=1)
    lines = [
        f"{len(image_sizes)} images, {len(image_sizes) - total.num_images} of them without "
        "annotations, which training leaves out",
        f"{total.num_objects} objects and {total.num_crowds} crowd regions of {len(classes) - 1} "
        "classes",
        "",
        f"{'':24}{'least':>8}{'median':>8}{'most':>8}",
    ]
    for name, values in (
        ("width of images, px", image_sizes[:, 0]),
        ("height of images, px", image_sizes[:, 1]),
        ("objects of an image", per_image),
        ("width of objects, px", object_sizes[:, 0]),
        ("height of objects, px", object_sizes[:, 1]),
    ):
        spread = (values.min(), np.median(values), values.max()) if len(values) else ()
        lines.append(f"{name:24}" + "".join(f"{value:>8g}" for value in spread))
    lines += [
        f"boxes smaller than {_SMALL} x {_SMALL} px: {(areas < _SMALL**2).sum()}, larger than "
        f"{_LARGE} x {_LARGE} px: {(areas > _LARGE**2).sum()}",
        "",
        "lost at S: not more than INPUT.MIN_BOX_SIZE wide or high in the S x S input",
        f"{'class':24}{'id':>8}{'images':>8}{'objects':>8}{'crowds':>8}"
        + "".join(f"{f'lost {size}':>10}" for size in input_sizes),
    ]
    for name, category_id, *counts, lost in classes:
        columns = "".join(f"{n:>8}" for n in (str(category_id), *counts))
        lines.append(f"{name[:23]:24}{columns}" + "".join(f"{n:>10}" for n in lost))
    return "\n".join(lines)
