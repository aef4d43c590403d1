"""What can be wrong with a COCO JSON and its images."""

from typing import Any, NamedTuple

# In the order of a report.
KINDS = {
    "empty_list": "a list of the JSON that training needs something in is empty",
    "bad_record": "a record lacks a field, or the field is not what it should be",
    "duplicate_id": "an id that another record of the same list has",
    "path_outside": "a file name that leads out of the folder of images",
    "missing_image": "no such file",
    "unreadable_image": "a file that cannot be decoded as an image",
    "wrong_size": "an image of another size than recorded",
    "unknown_image": "an annotation of an image that the JSON does not have",
    "unknown_category": "an annotation of a category that the JSON does not have",
    "empty_box": "a box without width or height",
    "box_outside": "a box that leaves the picture",
    "no_mask": "an object without a mask",
    "bad_polygon": "a polygon that is not a list of x, y, x, y, ... in pixels",
    "degenerate_polygon": "a polygon of fewer than 3 points, or without area",
    "mask_outside": "a mask that leaves the picture",
    "bad_rle": "an RLE that cannot be decoded",
    "rle_size": "an RLE of another size than the image",
    "mask_box_mismatch": "a mask and a box that disagree",
}


class Defect(NamedTuple):
    """One thing that is wrong, and where."""

    kind: str
    """A key of KINDS."""
    detail: str
    file: str | None = None
    """As the JSON names it."""
    image_id: Any = None
    annotation_id: Any = None
