import contextlib
import io
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.annotations import Size, evaluation_issues, is_area, mask_area, valid_polygons
from ..data.coco_dataset import COCOSource, ground_truth_file
from ..data.coco_json import read_json
from ..data.issues import Issue, count_by_kind


class InstanceCOCOEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` of boxes and masks, for users' own datasets.

    The AP is that of pycocotools on the JSON as it is. Missing values are filled in: an "area" that
    is missing or not a positive number becomes that of the mask, a missing "iscrowd" 0. Unlike
    Detectron2's evaluator, this one

    - does not use a faster implementation, whose AP may differ a little;
    - never reuses the JSON that an earlier evaluation made of a dataset without one;
    - gives 0, not NaN, for boxes and masks where objects exist and nothing was detected;
    - gives each of several classes of the same name its own AP.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str] = ("bbox", "segm"), *args, **kwargs):
        """
        Args:
            dataset_name: a dataset that :func:`check_datasets` has passed.
            tasks, args, kwargs: see :class:`COCOEvaluator`.
        """
        self._coco_api: COCO
        json_file = ground_truth_file(dataset_name)

        def read(path: str) -> COCO:
            source = DatasetCatalog.data.get(dataset_name)
            if isinstance(source, COCOSource):
                dataset = source.read()
            elif json_file is not None:
                dataset = read_json(json_file)
            else:
                dataset = {"annotations": [], **convert_to_coco_dict(dataset_name)}
            return _index(_complete(dataset, dataset_name))

        # Detectron2 would parse the file at each evaluation, in the encoding of the locale, and
        # write and reuse a file for a dataset without one.
        module = "detectron2.evaluation.coco_evaluation"
        with mock.patch(f"{module}.COCO", read), mock.patch(f"{module}.convert_to_coco_json"):
            super().__init__(dataset_name, tasks, *args, **{"use_fast_impl": False, **kwargs})
        if json_file is None:
            del self._metadata.json_file  # There is no such file.

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is None:  # Nothing was detected.
            nothing = _index({**self._coco_api.dataset, "annotations": []})
            coco_eval = COCOeval(self._coco_api, nothing, iou_type)
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        if class_names is not None:
            counts = Counter(class_names)
            class_names = [
                f"{name} ({i})" if counts[name] > 1 else str(name)
                for i, name in enumerate(class_names)
            ]
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _complete(dataset: dict[str, Any], name: str) -> dict[str, Any]:
    """A copy with all that pycocotools needs; one warning counts what was wrong."""
    if "annotations" not in dataset:  # a test set
        return dataset
    images = {image["id"]: image for image in dataset["images"]}
    annotations, issues = [], []
    for annotation in dataset["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:  # pycocotools ignores it
            continue
        size = image["width"], image["height"]
        segmentation = _readable(annotation["segmentation"], size)
        completed = {"iscrowd": 0, **annotation, "segmentation": segmentation}
        annotations.append(completed)
        if not is_area(annotation.get("area")):
            completed["area"] = mask_area(segmentation, size)
        for issue in evaluation_issues(annotation, size):
            where = image.get("file_name"), image["id"], annotation["id"]
            issues.append(Issue(*issue[:3], *where))
    if issues:
        message = f"Evaluation of {name}: {count_by_kind(issues)}"
        log_first_n(logging.WARNING, message, key="message")
    return {**dataset, "annotations": annotations}


def _readable(segmentation: Any, size: Size) -> Any:
    """A mask as it is, or without the polygons that pycocotools cannot read."""
    if not isinstance(segmentation, list) or valid_polygons(segmentation) == segmentation != []:
        return segmentation
    width, height = size
    try:
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    except Exception:  # it raises plain exceptions
        nothing = {"size": [height, width], "counts": [height * width]}
        return valid_polygons(segmentation) or mask_util.frPyObjects(nothing, height, width)
