import contextlib
import io
import logging

from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from ..data.annotations import describe_dropped, evaluated, why_unusable


class UsableCOCOEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` on what training uses: annotations that it leaves out are no objects
    to be found here either (COCO's API counts them as missed), and boxes end at the image's border.

    "area" and "iscrowd" may be missing in the JSON.
    """

    def __init__(self, dataset_name: str, *args, **kwargs):
        """
        Args:
            dataset_name: a dataset that :func:`check_datasets` has passed.
            args, kwargs: see :class:`COCOEvaluator`.
        """
        super().__init__(dataset_name, *args, **kwargs)
        if self._do_evaluation:
            keep_usable(self._coco_api, dataset_name)


def keep_usable(coco: COCO, name: str) -> None:
    """Make the annotations of a dataset, in place, those that are evaluated; warn of the others,
    once for all evaluators, with their number."""
    kept, dropped = [], []
    for annotation in coco.dataset["annotations"]:
        image = coco.imgs.get(annotation["image_id"])
        if image is None:  # COCO's API does not look at it
            continue
        size = image["width"], image["height"]
        reason = why_unusable(annotation, size)
        if reason:
            dropped.append((reason, image["file_name"]))
            continue
        # COCO's evaluation takes the id 0 for no object.
        kept.append({**evaluated(annotation, size), "id": len(kept) + 1})
    coco.dataset["annotations"] = kept
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for annotation in kept:
        if "area" not in annotation:
            annotation["area"] = float(mask_util.area(coco.annToRLE(annotation)))
    if dropped:
        message = f"Annotations of {name} that evaluation leaves out: {describe_dropped(dropped)}"
        log_first_n(logging.WARNING, message, key="message")
