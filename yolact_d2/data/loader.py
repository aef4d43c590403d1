"""Detectron2's loaders, made repeatable and tolerant of images that cannot be read."""

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.build import (
    build_detection_train_loader,
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import model_node
from .annotations import xyxy
from .checks import usable_training_dicts
from .coco_dataset import make_readable
from .dataset_dicts import recorded_size
from .dataset_mapper import YOLACTDatasetMapper
from .images import UnreadableImage, read_or_replace
from .mixing import MixedDataset
from .statistics import too_small

logger = logging.getLogger(__name__)

# How many images a warning names.
_MAX_NAMED = 10

Batch = list[dict[str, Any]]
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def build_train_loader(cfg, mapper: Mapper | None = None) -> "TrainLoader":
    """The loader of ``cfg.DATASETS.TRAIN``.

    The example at each position of its endless stream, augmentation included, depends on
    ``cfg.SEED`` and the position only: not on the number of workers, nor on whether the run was
    resumed. (With a negative seed each run augments differently.)

    Args:
        mapper: default: :class:`YOLACTDatasetMapper`. INPUT.AUG.MOSAIC_PROB and COPY_PASTE_PROB
            apply to the examples of any mapper, which must have images of one size then.

    Raises:
        ValueError: if the data cannot be trained on.
    """
    loader = build_detection_train_loader(
        cfg,
        dataset=training_dicts(cfg),
        mapper=mapper or YOLACTDatasetMapper(cfg),
        # Groups would be lost when a run is resumed.
        aspect_ratio_grouping=False,
    )
    aug = cfg.INPUT.AUG
    if model_node(cfg) == "YOLACT" and (aug.COPY_PASTE_PROB != 0 or aug.MOSAIC_PROB != 0):
        stream: Any = loader.dataset
        stream.dataset = MixedDataset(
            stream.dataset,
            copy_paste_prob=aug.COPY_PASTE_PROB,
            mosaic_prob=aug.MOSAIC_PROB,
            min_box_size=cfg.INPUT.MIN_BOX_SIZE,
        )
    return TrainLoader(loader, cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())


def training_dicts(cfg) -> list[dict[str, Any]]:
    """The dataset dicts of ``cfg.DATASETS.TRAIN`` with the annotations that can be trained on.

    Raises:
        ValueError: if there are none.
    """
    names = cfg.DATASETS.TRAIN
    dicts = list(itertools.chain(*(usable_training_dicts(cfg, name) for name in names)))
    dicts = [{**x, "annotations": x.get("annotations", [])} for x in dicts]
    annotations = [annotation for x in dicts for annotation in x["annotations"]]
    if annotations and all(annotation.get("iscrowd", 0) for annotation in annotations):
        raise ValueError(
            f"DATASETS.TRAIN, {names}: all {len(annotations)} annotations are crowd regions "
            "(iscrowd 1), which cannot be trained on"
        )
    classes = list(map(str, MetadataCatalog.get(names[0]).thing_classes))
    print_instances_class_histogram(dicts, classes)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise ValueError(f"DATASETS.TRAIN, {names}, has no objects to train on")
    _check_object_sizes(dicts, cfg)
    return dicts


def _check_object_sizes(dicts: list[dict[str, Any]], cfg) -> None:
    """
    Raises:
        ValueError: if there are objects, and all of them are too small to be trained on.
    """
    objects = [
        (*xyxy(annotation), *(recorded_size(x) or (1, 1)))
        for x in dicts
        for annotation in x["annotations"]
        if not annotation.get("iscrowd", 0)
    ]
    values = np.array(objects, dtype=np.float64).reshape(-1, 6)
    sizes, image_sizes = values[:, 2:4] - values[:, :2], values[:, 4:]
    if model_node(cfg) == "YOLACT":
        side, least = cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_BOX_SIZE
        small = too_small(sizes, image_sizes, side, least)
        limit = f"INPUT.MIN_BOX_SIZE, {least:g} pixels at INPUT.IMAGE_SIZE {side},"
    else:
        small, limit = sizes.min(axis=1) <= 1, "1 pixel"
    if objects and small.all():
        raise ValueError(
            f"DATASETS.TRAIN, {cfg.DATASETS.TRAIN}: every object is at most {limit} wide or high. "
            "Are the coordinates in pixels?"
        )


class TrainLoader:
    """Endless batches, from any iteration on; images that cannot be read are replaced by others."""

    def __init__(self, loader: DataLoader, seed: int):
        stream: Any = loader.dataset  # Detectron2's, which asks the sampler for what to load
        self._sampler = NumberedSampler(stream.sampler, loader.batch_size)  # type: ignore[arg-type]
        stream.sampler = self._sampler
        stream.dataset = RepeatableDataset(stream.dataset, seed)
        self._loader = loader
        self._unreadable: set[str] = set()

    def start_at(self, iteration: int) -> None:
        """Let the next iterator begin with the batch of an iteration."""
        self._sampler.first_batch = iteration

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            for reason in itertools.chain(*(x.pop("unreadable") for x in batch)):
                if reason not in self._unreadable:
                    self._unreadable.add(reason)
                    logger.warning(
                        f"Image left out of training and replaced by another: {reason} "
                        f"({len(self._unreadable)} so far)"
                    )
            yield batch


class NumberedSampler(Sampler):
    """Yields (position in the stream of all processes, index) for the samples of this process.

    The indices are those of a training sampler of Detectron2.
    """

    def __init__(self, sampler: Sampler, batch_size: int):
        self._sampler = sampler
        self._batch_size = batch_size
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        self.first_batch = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbered = zip(itertools.count(self._rank, self._world_size), self._sampler)
        return itertools.islice(numbered, self.first_batch * self._batch_size, None)


class RepeatableDataset(Dataset):
    """Examples by (position in the stream, index); seed and position determine the augmentation."""

    def __init__(self, dataset: Any, seed: int):
        self._dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position_and_index: tuple[int, int]) -> dict[str, Any]:
        """The example, or another if its image cannot be read; "unreadable" lists such errors."""
        position, index = position_and_index
        with seeded(self._seed, position):
            example, unreadable = read_or_replace(self._dataset, index)
        # A MixedDataset has replaced other images.
        return {**example, "unreadable": unreadable + example.get("unreadable", [])}


def build_test_loader(cfg, dataset_name: str) -> "TestLoader":
    """The loader of a dataset to evaluate on."""
    make_readable(dataset_name, training=False)
    mapper = partial(_map_or_report, YOLACTDatasetMapper(cfg, is_train=False))
    return TestLoader(build_detection_test_loader(cfg, dataset_name, mapper=mapper))


def _map_or_report(mapper: Mapper, dataset_dict: dict[str, Any]) -> dict[str, Any]:
    try:
        return mapper(dataset_dict)
    except UnreadableImage as error:
        return {"unreadable": str(error)}


class TestLoader:
    """Skips images that cannot be read, for which the given loader has {"unreadable": reason}.

    Iterating raises UnreadableImage at the end if no process could read any image.
    """

    __test__ = False  # it is not a test of pytest

    def __init__(self, loader: DataLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        reasons, num_readable = [], 0
        for batch in self._loader:
            reasons += [x["unreadable"] for x in batch if "unreadable" in x]
            readable = [x for x in batch if "unreadable" not in x]
            num_readable += len(readable)
            if readable:
                yield readable
        parts = comm.all_gather((num_readable, reasons))
        reasons = list(itertools.chain(*(part for _, part in parts)))
        if not reasons:
            return
        named = "; ".join(reasons[:_MAX_NAMED]) + ("; ..." if len(reasons) > _MAX_NAMED else "")
        if not any(num for num, _ in parts):
            raise UnreadableImage(f"none of {len(reasons)} images can be read: {named}")
        logger.warning(
            f"{len(reasons)} images could not be read; their objects count as missed: {named}"
        )


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed Python, numpy and PyTorch (on the CPU) inside the context, and restore them after it."""
    words = [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        np.random.seed(words[0])
        random.seed(words[1])
        torch.default_generator.manual_seed(words[2])  # torch.manual_seed also seeds the GPUs
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
