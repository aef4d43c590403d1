"""Polygons and masks of rectangles (x, y, w, h), as a COCO JSON has them."""

import numpy as np
from pycocotools import mask as mask_util

WIDTH, HEIGHT = 40, 30
BOX = [5, 4, 10, 8]


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def rectangle(x, y, w, h, size=(WIDTH, HEIGHT)):
    """A mask, as far as it is inside the image."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    return mask


def rle(mask, compressed=True):
    if compressed:
        encoded = mask_util.encode(np.asfortranarray(mask))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}
