"""What may be wrong with a dataset: kinds of issues, their severity, and how they are reported."""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple


class Severity(str, Enum):
    FATAL = "fatal"
    """Stops training and evaluation."""
    DROPPED = "dropped"
    """The annotation or image is left out, and counted in a warning."""
    NOTE = "note"
    """It is used, but suspicious."""


FATAL, DROPPED, NOTE = Severity.FATAL, Severity.DROPPED, Severity.NOTE

# In the order of a report.
KINDS = {
    "empty_list": "a list of the JSON is empty",
    "bad_record": "a field is missing or has a wrong type or value",
    "duplicate_id": "an id that another record of the same list has",
    "duplicate_name": "a category name that another category has",
    "duplicate_file": "an image file that has several image ids, each with its own annotations",
    "path_outside": "a file name that leads out of the image folder",
    "missing_image": "no such file",
    "unreadable_image": "a file that cannot be decoded as an image",
    "wrong_size": "an image of another size than recorded",
    "unknown_image": "an annotation of an image that the JSON does not have",
    "unknown_category": "an annotation of a category that the dataset does not have",
    "empty_box": "a box without width or height",
    "box_outside": "a box that leaves the image",
    "no_mask": "an annotation without a mask, or with an empty one",
    "bad_polygon": "a polygon that is not a list of x, y, x, y, ... in pixels",
    "degenerate_polygon": "a polygon of fewer than 3 points, or without area",
    "mask_outside": "a mask that leaves the image",
    "bad_rle": "an RLE that cannot be decoded",
    "rle_size": "an RLE of another size than the image",
    "mask_box_mismatch": "a mask and a box that disagree",
    "crowds_only": "a dataset of crowd regions only, which are not trained on",
    "bad_area": "an area that is not a positive number",
    "wrong_area": "an area that is more than twice or less than half that of the mask",
    "annotation_id_0": "the annotation id 0, which COCO's evaluation reads as no match",
}


class Issue(NamedTuple):
    """One broken rule, and where."""

    kind: str
    """A key of KINDS."""
    severity: Severity
    detail: str
    file: str | None = None
    image_id: Any = None
    annotation_id: Any = None

    def __str__(self) -> str:
        names = ("", self.file), ("image ", self.image_id), ("annotation ", self.annotation_id)
        where = ", ".join(f"{name}{value}" for name, value in names if value is not None)
        return f"{where}: {self.detail}" if where else self.detail


def is_usable(issues: Iterable[Issue]) -> bool:
    """Whether no issue of an annotation is fatal or drops it."""
    return all(issue.severity is NOTE for issue in issues)


def raise_fatal(issues: Iterable[Issue], source: str) -> None:
    """
    Args:
        source: the dataset or the JSON, for the message.

    Raises:
        ValueError: if an issue is fatal; it describes the first and counts the others.
    """
    fatal = [issue for issue in issues if issue.severity is FATAL]
    if fatal:
        more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
        raise ValueError(f"{source}: {fatal[0]}{more}")


def count_by_kind(issues: Sequence[Issue]) -> str:
    """How many issues of each kind there are, with an example; "" if there are none."""
    examples = {issue.kind: issue for issue in reversed(issues)}
    counts = Counter(issue.kind for issue in issues)
    return "; ".join(f"{n} {kind} (e.g. {examples[kind]})" for kind, n in counts.items())
