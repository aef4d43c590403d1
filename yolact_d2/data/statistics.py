"""Counts and sizes of a COCO dataset, and what a model's input size would lose of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_SMALL, _LARGE = 32, 96  # COCO's, sides of squares in pixels

Record = dict[str, Any]


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


def format_statistics(
    images: Sequence[Record],
    annotations: Sequence[Record],
    categories: Sequence[Record],
    input_sizes: Sequence[int],
    min_box_size: float,
) -> str:
    """A report in lines: sizes, and counts of each class.

    Args:
        images, categories: records of a COCO JSON with distinct ids.
        annotations: usable ones, of these images and categories.
        input_sizes, min_box_size: see :func:`too_small`.
    """
    index = {image["id"]: number for number, image in enumerate(images)}
    image = np.array([index[a["image_id"]] for a in annotations], int)
    category = np.array([a["category_id"] for a in annotations], int)
    is_object = np.array([a.get("iscrowd", 0) != 1 for a in annotations], bool)
    image_sizes = np.array([(x["width"], x["height"]) for x in images], float).reshape(-1, 2)
    boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
    high = (boxes[:, :2] + boxes[:, 2:]).clip(0, image_sizes[image])
    sizes = high - boxes[:, :2].clip(0, image_sizes[image])  # of the visible parts
    lost = [too_small(sizes, image_sizes[image], s, min_box_size) for s in input_sizes]
    object_sizes, areas = sizes[is_object], sizes[is_object].prod(axis=1)
    num_empty = len(images) - len(np.unique(image))

    lost_at = "lost at S: not more than INPUT.MIN_BOX_SIZE wide or high in the S x S input"
    lines = [
        f"{len(images)} images, {num_empty} of them without annotations, which training leaves out",
        f"{is_object.sum()} objects and {(~is_object).sum()} crowd regions of {len(categories)} "
        "classes",
        "",
        f"{'':24}{'least':>8}{'median':>8}{'most':>8}",
        _spread("width of images, px", image_sizes[:, 0]),
        _spread("height of images, px", image_sizes[:, 1]),
        _spread("objects of an image", np.bincount(image[is_object], minlength=len(images))),
        _spread("width of objects, px", object_sizes[:, 0]),
        _spread("height of objects, px", object_sizes[:, 1]),
        f"boxes smaller than {_SMALL} x {_SMALL} px: {(areas < _SMALL**2).sum()}, larger than "
        f"{_LARGE} x {_LARGE} px: {(areas > _LARGE**2).sum()}",
        "",
        *([lost_at] if input_sizes else []),
        f"{'class':24}{'id':>8}{'images':>8}{'objects':>8}{'crowds':>8}"
        + "".join(f"{f'lost {size}':>10}" for size in input_sizes),
    ]
    members = [
        (c["name"], c["id"], category == c["id"]) for c in sorted(categories, key=lambda c: c["id"])
    ]
    for name, category_id, chosen in [*members, ("all", "", np.full(len(annotations), True))]:
        objects, crowds = chosen & is_object, chosen & ~is_object
        counts = category_id, len(np.unique(image[chosen])), objects.sum(), crowds.sum()
        row = [f"{count!s:>8}" for count in counts] + [f"{(objects & x).sum():>10}" for x in lost]
        lines.append(f"{name[:23]:24}" + "".join(row))
    return "\n".join(lines)


def _spread(name: str, values: np.ndarray) -> str:
    spread = (values.min(), np.median(values), values.max()) if len(values) else ()
    return f"{name:24}" + "".join(f"{value:>8g}" for value in spread)
