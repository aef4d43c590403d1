"""Training and evaluation on COCO JSON files, without registering datasets in Python."""

import os
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from ..config import model_node
from .coco_json import (
    COCO,
    ValidatedCOCO,
    pycocotools_reads,
    read_coco,
    to_dataset_dicts,
    validate_coco,
)
from .issues import raise_fatal

CUSTOM_TRAIN, CUSTOM_VAL = "custom_train", "custom_val"


class COCODataset(NamedTuple):
    json_file: str
    image_root: str
    """The folder that the file names in the JSON are relative to."""


class COCOSource:
    """What DatasetCatalog calls for the dicts of a :class:`COCODataset`, without its unusable
    annotations. The file is parsed again if it has changed.

    Attributes:
        classes: names by category id, in the order of the ids.
        issues: of the annotations, none of them fatal.
        num_annotations: in the file.
    """

    def __init__(self, data: COCODataset, coco: COCO, training: bool):
        """
        Args:
            coco: the content of the file.
            training: free it after the first call; later calls parse the file again.

        Raises:
            ValueError: naming the file and the first fatal issue.
        """
        self.data = data
        self._training = training
        self._coco: COCO | None
        self._validated: ValidatedCOCO
        self._set(coco)

    def read(self) -> COCO:
        """The content of the file."""
        if self._coco is None or self._version != self._current_version():
            classes = self.classes
            self._set(read_coco(self.data.json_file))
            if self.classes != classes:
                raise ValueError(
                    f"{self.data.json_file} has changed: its categories were {classes}, and are "
                    f"{self.classes} now"
                )
        return self._coco  # type: ignore[return-value]

    def __call__(self) -> list[dict[str, Any]]:
        self.read()
        usable = self._validated._asdict()
        numbers = self.class_metadata["thing_dataset_id_to_contiguous_id"]
        if self._training:
            self._coco, self._validated = None, ValidatedCOCO([], [], [], [])
        return to_dataset_dicts(usable, self.data.image_root, numbers)

    @property
    def class_metadata(self) -> dict[str, Any]:
        """What Detectron2 calls the names and ids of the classes."""
        return {
            "thing_classes": list(self.classes.values()),
            "thing_dataset_id_to_contiguous_id": {i: n for n, i in enumerate(self.classes)},
        }

    def _set(self, coco: COCO) -> None:
        self._version = self._current_version()
        self._coco = coco
        self._validated = validate_coco(coco)
        raise_fatal(self._validated.issues, self.data.json_file)
        self.issues = self._validated.issues
        self.num_annotations = len(coco["annotations"])
        categories = ((category["id"], category["name"]) for category in coco["categories"])
        self.classes: dict[int, str] = dict(sorted(categories))

    def _current_version(self) -> tuple[int, int]:
        stat = os.stat(PathManager.get_local_path(self.data.json_file))
        return stat.st_mtime_ns, stat.st_size


def use_coco_datasets(
    cfg: CfgNode,
    train: COCODataset | None,
    val: COCODataset | None,
    *,
    trained_with: CfgNode | None = None,
) -> None:
    """Register COCO JSON files as custom_train and custom_val, and set up a config for them.

    Sets DATASETS.TRAIN and DATASETS.TEST, and the model's NUM_CLASSES, CLASS_NAMES and
    CATEGORY_IDS, in place. Every process must call it. Each file is parsed once.

    Args:
        train: to train on. None: DATASETS.TRAIN stays as it is.
        val: to evaluate on. None: DATASETS.TEST becomes empty.
        trained_with: the config of a trained model, whose classes must be those of the files.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: naming the file and what is wrong with it.
    """
    files: dict[str, COCO] = {}  # train and val may be one file
    sources: dict[str, COCOSource] = {}
    for name, data in ((CUSTOM_TRAIN, train), (CUSTOM_VAL, val)):
        if data:
            coco = files.get(data.json_file) or read_coco(data.json_file)
            files[data.json_file] = coco
            sources[name] = COCOSource(data, coco, training=name == CUSTOM_TRAIN)
    first, *others = sources.values()
    path, classes = first.data.json_file, first.classes
    for other in others:
        ours, theirs = set(classes.items()), set(other.classes.items())
        if ours != theirs:
            raise ValueError(
                f"the categories differ; only in {path}: {sorted(ours - theirs)}; only in "
                f"{other.data.json_file}: {sorted(theirs - ours)}"
            )
    ids, names = list(classes), list(classes.values())
    if trained_with is not None:
        model = trained_with.MODEL[model_node(trained_with)]
        other_names = model.CLASS_NAMES and list(model.CLASS_NAMES) != names
        other_ids = model.CATEGORY_IDS and list(model.CATEGORY_IDS) != ids
        if other_names or other_ids:
            raise ValueError(
                f"{path} has the classes {names} with the ids {ids}, but the model was trained on "
                f"{list(model.CLASS_NAMES)} with {list(model.CATEGORY_IDS)}"
            )
    node = cfg.MODEL[model_node(cfg)]
    node.NUM_CLASSES, node.CLASS_NAMES, node.CATEGORY_IDS = len(ids), names, ids

    for name, source in sources.items():
        if name in MetadataCatalog:  # of an earlier run in this process
            MetadataCatalog.remove(name)
        DatasetCatalog[name] = source
        MetadataCatalog.get(name).set(
            **source.data._asdict(), evaluator_type="coco", **source.class_metadata
        )
    if train:
        cfg.DATASETS.TRAIN = (CUSTOM_TRAIN,)
    cfg.DATASETS.TEST = (CUSTOM_VAL,) if val else ()


def make_readable(name: str, training: bool) -> None:
    """Use this project's reader for a dataset of Detectron2's `register_coco_instances` if
    Detectron2, which reads text in the encoding of the locale, cannot read the JSON.

    Raises:
        OSError, ValueError: naming the file and what is wrong with it.
        AssertionError: Detectron2's, if the metadata has other classes.
    """
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if _has_detectron2_reader(name) and json_file and not pycocotools_reads(json_file):
        data = COCODataset(str(json_file), str(image_root))
        source = COCOSource(data, read_coco(data.json_file), training)
        metadata.set(**source.class_metadata)
        DatasetCatalog[name] = source


def ground_truth_file(name: str) -> str | None:
    """The JSON that a dataset is evaluated on. None if there is none but those that evaluators of
    Detectron2 have made of its dicts, perhaps of earlier ones."""
    path = str(MetadataCatalog.get(name).get("json_file") or "")
    is_converted = path.endswith(f"{name}_coco_format.json") and not (
        isinstance(DatasetCatalog.data.get(name), COCOSource) or _has_detectron2_reader(name)
    )
    return None if is_converted or not path else path


def _has_detectron2_reader(name: str) -> bool:
    reader = DatasetCatalog.data.get(name)
    return getattr(reader, "__module__", None) == load_coco_json.__module__
