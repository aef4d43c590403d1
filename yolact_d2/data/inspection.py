"""A report of what is wrong with a COCO JSON and its images."""

import json
import os
from collections.abc import Sequence

from tqdm import tqdm

from ..files import atomic_write
from .annotations import evaluation_issues
from .coco_json import COCO, ValidatedCOCO, validate_coco
from .dataset_dicts import image_issues
from .issues import FATAL, KINDS, Issue, Severity

_MAX_SHOWN = 20


def inspect_dataset(coco: COCO, image_root: str, show_progress: bool = False) -> ValidatedCOCO:
    """Find all issues of a COCO JSON and of its image files, which are decoded.

    Args:
        coco: see :func:`yolact_d2.data.coco_json.read_coco`.
        image_root: the folder of the images.
    """
    validated = validate_coco(coco)
    images = validated.images
    files = [{**x, "file_name": os.path.join(image_root, x["file_name"])} for x in images]
    checked = image_issues(files, image_root, read="all")
    checked = tqdm(checked, total=len(images), unit=" images", disable=not show_progress)
    issues = [
        issue._replace(file=image["file_name"], image_id=image["id"])
        for issue, image in zip(checked, images)
        if issue is not None
    ]
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    names = {image["id"]: image["file_name"] for image in images}
    issues += validated.issues
    for annotation in validated.annotations:
        image_id = annotation["image_id"]
        for issue in evaluation_issues(annotation, sizes[image_id]):
            issues.append(Issue(*issue[:3], names[image_id], image_id, annotation["id"]))
    if validated.annotations and all(a.get("iscrowd", 0) for a in validated.annotations):
        detail = f"all {len(validated.annotations)} annotations have iscrowd 1"
        issues.append(Issue("crowds_only", FATAL, detail))
    return validated._replace(issues=issues)


def format_issues(issues: Sequence[Issue]) -> str:
    """A report in lines: how many issues of each severity and kind, and the first of each kind."""
    if not issues:
        return "No issues."
    counts = {s: sum(issue.severity is s for issue in issues) for s in Severity}
    summary = ", ".join(f"{count} {s.value}" for s, count in counts.items() if count)
    lines = [f"{len(issues)} issues: {summary}"]
    for kind, meaning in KINDS.items():
        found = [issue for issue in issues if issue.kind == kind]
        if found:
            lines += ["", f"{kind}: {len(found)}  ({meaning})"]
            lines += [f"  {issue.severity.value}: {issue}" for issue in found[:_MAX_SHOWN]]
        if len(found) > _MAX_SHOWN:
            lines.append(f"  ... and {len(found) - _MAX_SHOWN} more")
    return "\n".join(lines)


def write_issues(issues: Sequence[Issue], path: str) -> None:
    """Write a JSON list with a dict for each issue.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as partial, open(partial, "w") as file:
        json.dump([issue._asdict() for issue in issues], file, indent=1)
