"""Defects for people and for programs."""

import json
from collections import Counter
from collections.abc import Sequence

from ...files import atomic_write
from .defects import KINDS, Defect

_SHOWN = 20


def format_defects(defects: Sequence[Defect]) -> str:
    """A report in lines: how many of each kind, and the first of them."""
    if not defects:
        return "No defects."
    counts = Counter(defect.kind for defect in defects)
    lines = [f"{len(defects)} defects"]
    for kind, meaning in KINDS.items():
        if kind not in counts:
            continue
        lines += ["", f"{kind}: {counts[kind]}  ({meaning})"]
        shown = [defect for defect in defects if defect.kind == kind][:_SHOWN]
        lines += [f"  {_format_where(defect)}{defect.detail}" for defect in shown]
        if counts[kind] > _SHOWN:
            lines.append(f"  ... and {counts[kind] - _SHOWN} more")
    return "\n".join(lines)


def _format_where(defect: Defect) -> str:
    where = [
        f"{name} {value}"
        for name, value in (
            ("image", defect.image_id),
            ("annotation", defect.annotation_id),
        )
        if value is not None
    ]
    if defect.file is not None:
        where.insert(0, str(defect.file))
    return f"{', '.join(where)}: " if where else ""


def write_defects(defects: Sequence[Defect], path: str) -> None:
    """Write a JSON list with a dict for each defect.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial, open(partial, "w") as file:
        json.dump([defect._asdict() for defect in defects], file, indent=1)
