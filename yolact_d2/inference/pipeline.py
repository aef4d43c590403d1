"""Reading, inference, drawing and writing at the same time, in order."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from detectron2.structures import Instances

from .predictor import Predictor
from .sources import Frame

T = TypeVar("T")

# How long, in seconds, a stage may take to notice that it is no longer needed.
_PATIENCE = 0.1


class Stages:
    """Iterators that run ahead of whoever reads them, each in a thread of its own.

    There is one thread to a stage, so items keep their order. Leaving the context, by an error or
    in the middle, ends the threads.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def ahead(self, items: Iterable[T], depth: int) -> Iterator[T]:
        """The same items, up to `depth` of which wait for the reader. An error of the iterator is
        raised where it is read, after the items before it."""
        done = object()
        waiting: queue.Queue = queue.Queue(maxsize=depth)

        def put(item, error=None) -> None:
            while not self._stopped.is_set():
                try:
                    return waiting.put((item, error), timeout=_PATIENCE)
                except queue.Full:
                    pass

        def work() -> None:
            try:
                for item in items:
                    put(item)
                    if self._stopped.is_set():
                        return
            except BaseException as error:
                put(done, error)
            else:
                put(done)

        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

        def read() -> Iterator[T]:
            while not self._stopped.is_set():
                try:
                    item, error = waiting.get(timeout=_PATIENCE)
                except queue.Empty:
                    continue
                if error is not None:
                    raise error
                if item is done:
                    return
                yield item

        return read()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of which may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def process(
    stages: Stages,
    frames: Iterable[Frame],
    predictor: Predictor,
    draw: Callable[[np.ndarray, Instances], np.ndarray],
    batch_size: int,
) -> Iterator[tuple[Frame, Instances, np.ndarray]]:
    """Frames with what was found in them and a drawing of it, in order.

    While one is used, the next is drawn, those after it go through the model, and those after them
    are read. Masks of large frames are large, so no more than one batch waits for its drawing.
    """

    def predict(batch: list[Frame]) -> list[tuple[Frame, Instances]]:
        return list(zip(batch, predictor.predict([frame.image for frame in batch])))

    read = stages.ahead(frames, batch_size)
    predicted = stages.ahead(map(predict, batched(read, batch_size)), 1)
    pairs = itertools.chain.from_iterable(predicted)
    return stages.ahead(((f, found, draw(f.image, found)) for f, found in pairs), 1)
