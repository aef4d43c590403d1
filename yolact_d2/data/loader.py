"""The loaders of training and evaluation: Detectron2's, repeatable, and without an end when a
picture cannot be read."""

import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from .annotations import drop_unusable, xyxy
from .dataset_mapper import ImageMapper, YOLACTDatasetMapper
from .images import UnreadableImage
from .inspection.statistics import count_lost

logger = logging.getLogger(__name__)

# So many pictures are tried in place of one that cannot be read. If none of them can, it is not
# the pictures that are damaged.
_MAX_TRIALS = 10
# So many are named in a warning.
_MAX_NAMED = 10

Batch = list[dict[str, Any]]
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def build_train_loader(cfg, mapper: Mapper | None = None) -> "TrainLoader":
    """The loader of ``cfg.DATASETS.TRAIN``, with :class:`YOLACTDatasetMapper` if no other mapper is
    given.

    What comes at some place of its endless stream, augmentation included, depends on ``cfg.SEED``
    and the place alone: not on the number of workers, nor on whether the run was stopped between.
    (With a negative seed the augmentation is another one in each run.)
    """
    loader = build_detection_train_loader(
        cfg,
        dataset=training_dicts(cfg),
        mapper=mapper or YOLACTDatasetMapper(cfg),
        # All images get the same size; and groups would be lost when a run is resumed.
        aspect_ratio_grouping=False,
    )
    return TrainLoader(loader, cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())


def training_dicts(cfg) -> list[dict[str, Any]]:
    """The dataset dicts of ``cfg.DATASETS.TRAIN`` with the annotations that can be trained on.

    Raises:
        ValueError: if there are none.
    """
    dicts = drop_unusable(get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False))
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and "annotations" in dicts[0]:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise ValueError(f"DATASETS.TRAIN, {cfg.DATASETS.TRAIN}, has no objects to train on")
    size, least = cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_BOX_SIZE
    if all(becomes_too_small(x, size, least) for x in dicts):
        raise ValueError(
            f"DATASETS.TRAIN, {cfg.DATASETS.TRAIN}: every object is at most {least:g} pixels "
            f"(INPUT.MIN_BOX_SIZE) wide or high when its image is {size} x {size}. Are the "
            "coordinates in pixels?"
        )
    return dicts


def becomes_too_small(record: dict[str, Any], size: int, min_box_size: float) -> bool:
    """Whether a dataset dict has objects, and all are too small to be trained on once the image is
    `size` x `size`."""
    boxes = [xyxy(a) for a in record.get("annotations", []) if not a.get("iscrowd", 0)]
    if not boxes or "width" not in record or "height" not in record:
        return False
    corners = np.array(boxes, dtype=np.float64)
    image_size = np.array([[record["width"], record["height"]]])
    num_lost = count_lost(corners[:, 2:] - corners[:, :2], image_size, size, min_box_size)
    return num_lost == len(boxes)


class TrainLoader:
    """Batches without end, from any iteration on.

    ImageFiles that cannot be read are left out, others are taken in their place.
    """

    def __init__(self, loader: DataLoader, seed: int):
        """
        Args:
            loader: of Detectron2, with a sampler.
            seed: what the augmentation draws depends on it, and on the place in the stream.
        """
        stream = loader.dataset  # Detectron2's, which asks the sampler for what to load
        stream.sampler = self._sampler = NumberedSampler(stream.sampler, loader.batch_size)
        stream.dataset = RepeatableDataset(stream.dataset, seed)
        self._loader = loader
        self._unreadable = set()

    def start_at(self, iteration: int) -> None:
        """Let the next iterator begin with the batch of some iteration."""
        self._sampler.first_batch = iteration

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            for x in batch:
                self._report(x.pop("unreadable"))
            yield batch

    def _report(self, reasons: list[str]) -> None:
        for reason in reasons:
            if reason not in self._unreadable:
                self._unreadable.add(reason)
                logger.warning(
                    f"Left out of training, another picture taken in its place: {reason} "
                    f"({len(self._unreadable)} so far)"
                )


class NumberedSampler(Sampler):
    """What a training sampler gives, as pairs of the place in the stream of all processes and the
    index, from some batch on."""

    def __init__(self, sampler: Sampler, batch_size: int):
        """
        Args:
            sampler: gives every process its part of an endless stream.
            batch_size: of one process.
        """
        self._sampler = sampler
        self._batch_size = batch_size
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        self.first_batch = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbered = zip(itertools.count(self._rank, self._world_size), self._sampler)
        return itertools.islice(numbered, self.first_batch * self._batch_size, None)


class RepeatableDataset(Dataset):
    """Examples by place in the stream and index: the place decides what is random in them."""

    def __init__(self, dataset: Dataset, seed: int):
        """
        Args:
            dataset: gives examples by index, or raises :class:`UnreadableImage`.
            seed: 0 or more.
        """
        self._dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place_and_index: tuple[int, int]) -> dict[str, Any]:
        """
        Returns:
            the example with the key "unreadable": why those that were tried before it were not
            taken.

        Raises:
            UnreadableImage: if no picture can be read.
        """
        place, index = place_and_index
        unreadable: list[str] = []
        with all_random_from(self._seed, place):
            for _ in range(_MAX_TRIALS):
                try:
                    return {**self._dataset[index], "unreadable": unreadable}
                except UnreadableImage as error:
                    unreadable.append(str(error))
                    index = random.randrange(len(self))
        raise UnreadableImage(
            f"{_MAX_TRIALS} pictures in a row cannot be read: {'; '.join(unreadable)}"
        )


def build_test_loader(cfg, dataset_name: str) -> "TestLoader":
    """The loader of a dataset to evaluate on."""
    mapper = partial(_mapped_or_reason, ImageMapper(cfg))
    return TestLoader(build_detection_test_loader(cfg, dataset_name, mapper=mapper))


def _mapped_or_reason(mapper: Mapper, dataset_dict: dict[str, Any]) -> dict[str, Any]:
    try:
        return mapper(dataset_dict)
    except UnreadableImage as error:
        return {"unreadable": str(error)}


class TestLoader:
    """Batches of a dataset without the pictures that cannot be read."""

    def __init__(self, loader: DataLoader):
        """
        Args:
            loader: gives batches in which such a picture is {"unreadable": reason}.
        """
        self._loader = loader

    def __len__(self) -> int:
        """How many batches there are, if all pictures can be read."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UnreadableImage: at the end, if no process could read any.
        """
        reasons: list[str] = []
        num_readable = 0
        for batch in self._loader:
            reasons += [x["unreadable"] for x in batch if "unreadable" in x]
            readable = [x for x in batch if "unreadable" not in x]
            if readable:
                num_readable += len(readable)
                yield readable
        parts = comm.all_gather((num_readable, reasons))
        num_readable = sum(num for num, _ in parts)
        reasons = [reason for _, part in parts for reason in part]
        if not reasons:
            return
        more = f"; and {len(reasons) - _MAX_NAMED} more" if len(reasons) > _MAX_NAMED else ""
        named = "; ".join(reasons[:_MAX_NAMED]) + more
        if num_readable == 0:
            raise UnreadableImage(f"none of {len(reasons)} pictures can be read: {named}")
        logger.warning(
            f"ImageFiles that could not be read: {len(reasons)}. Nothing is found in them, and what "
            f"there is to be found counts as missed. {named}"
        )


@contextlib.contextmanager
def all_random_from(*seed: int) -> Iterator[None]:
    """Let all that numpy, PyTorch (on the CPU) and Python draw depend on `seed` alone; afterwards
    they go on where they were."""
    words = [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        np.random.seed(words[0])
        random.seed(words[1])
        torch.manual_seed(words[2])
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])
