"""AP of a model on a dataset."""

import math
import tempfile

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset

from ..data import build_test_loader
from ..evaluation import MaskScoreCOCOEvaluator, UsableCOCOEvaluator
from .anatomy import num_classes
from .runner import Runner
from .specs import ModelSpec


def check_dataset(name: str, spec: ModelSpec) -> None:
    """
    Raises:
        ValueError: if a model cannot be evaluated on a dataset, saying why.
    """
    if name not in DatasetCatalog:
        known = ", ".join(DatasetCatalog.list())
        raise ValueError(f"the dataset {name!r} is not registered; known are {known}")
    try:
        DatasetCatalog.get(name)
    except OSError as error:
        raise ValueError(
            f"the dataset {name!r} cannot be read: {error}. Datasets are in the folder that "
            "DETECTRON2_DATASETS names, ./datasets by default"
        ) from error
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") not in (None, "coco"):
        raise ValueError(
            f"the dataset {name!r} is evaluated as {metadata.evaluator_type!r}; AP is measured on "
            "datasets of COCO's kind"
        )
    expected, classes = num_classes(spec.load()), len(metadata.thing_classes)
    if classes != expected:
        raise ValueError(
            f"the dataset {name!r} has {classes} categories, {spec.label} has {expected}"
        )


def measure_ap(runner: Runner, dataset: str) -> dict[str, float | None]:
    """By the pictures and objects that training and evaluation of this project use, for all models.

    Returns:
        "bbox" and, of a model with masks, "segm": AP in percent, None if it is not defined.
    """
    loader = build_test_loader(runner.cfg, dataset)
    tasks = ("bbox", "segm") if runner.anatomy.has_masks else ("bbox",)
    with tempfile.TemporaryDirectory() as folder:
        if getattr(runner.model, "mask_iou_head", None) is not None:
            evaluator = MaskScoreCOCOEvaluator(dataset, folder, distributed=False)
        else:
            evaluator = UsableCOCOEvaluator(dataset, tasks, distributed=False, output_dir=folder)
        results = inference_on_dataset(runner.model, loader, evaluator)
    found = {task: results.get(task, {}).get("AP", math.nan) for task in tasks}
    return {task: None if math.isnan(ap) else ap for task, ap in found.items()}
