import contextlib
import io
import logging
from typing import Any
from unittest import mock

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from ..data.annotations import (
    OUTSIDE_TOLERANCE,
    Size,
    annotation_issues,
    clip_box,
    valid_polygons,
    xyxy,
)
from ..data.coco_dataset import COCOSource
from ..data.issues import Issue, describe_dropped, is_usable


class FilteredCOCOEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` that uses the annotations that training uses.

    Annotations that training leaves out are neither found nor missed (COCO's API counts them as
    missed), boxes are clipped to the image, and "area" and "iscrowd" may be missing in the JSON.
    """

    def __init__(self, dataset_name: str, *args, **kwargs):
        """
        Args:
            dataset_name: a dataset that :func:`check_datasets` has passed.
            args, kwargs: see :class:`COCOEvaluator`.
        """
        self._coco_api: COCO
        source = DatasetCatalog.data.get(dataset_name)
        if isinstance(source, COCOSource) and source.coco is not None:
            # COCOEvaluator takes files only, and would parse this one at each evaluation.
            parsed = _index(source.coco)
            with mock.patch("detectron2.evaluation.coco_evaluation.COCO", lambda path: parsed):
                super().__init__(dataset_name, *args, **kwargs)
        else:
            super().__init__(dataset_name, *args, **kwargs)
        if self._do_evaluation:
            self._coco_api = _filter(self._coco_api, dataset_name)


def _index(dataset: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
    return coco


def _filter(coco: COCO, name: str) -> COCO:
    """The dataset with the annotations that are evaluated; warns about the others, once for all
    evaluators."""
    kept: list[dict[str, Any]] = []
    issues: list[Issue] = []
    for annotation in coco.dataset["annotations"]:
        image = coco.imgs.get(annotation["image_id"])
        if image is None:  # COCO's API ignores it
            continue
        size = image["width"], image["height"]
        found = annotation_issues(annotation, size)
        if is_usable(found):
            # COCO's evaluation takes the id 0 for no object.
            kept.append({**_clip(annotation, size), "id": len(kept) + 1})
        else:
            issues += [issue._replace(file=image["file_name"]) for issue in found]
    filtered = _index({**coco.dataset, "annotations": kept})
    for annotation in kept:
        if "area" not in annotation:
            annotation["area"] = float(mask_util.area(filtered.annToRLE(annotation)))
    if issues:
        message = f"Annotations left out of the evaluation of {name}: {describe_dropped(issues)}"
        log_first_n(logging.WARNING, message, key="message")
    return filtered


def _clip(annotation: dict[str, Any], size: Size) -> dict[str, Any]:
    """A copy with a box that ends at the border of the image, as those of detections do, unless it
    leaves it by no more than OUTSIDE_TOLERANCE; and without polygons of fewer than 3 points."""
    clipped = {"iscrowd": 0, **annotation}
    if isinstance(annotation["segmentation"], list):
        clipped["segmentation"] = valid_polygons(annotation["segmentation"])
    box = np.array(xyxy(annotation))
    visible = clip_box(box, size)
    if np.abs(box - visible).max() > OUTSIDE_TOLERANCE:
        clipped["bbox"] = [*visible[:2].tolist(), *(visible[2:] - visible[:2]).tolist()]
    return clipped
