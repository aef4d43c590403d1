"""Read, predict and draw at the same time, in order."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeVar

import numpy as np
from detectron2.structures import Instances

from .predictor import Predictor
from .sources import Frame, ImageFiles, Video

T = TypeVar("T")
Draw = Callable[[np.ndarray, Instances], np.ndarray]


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate over `items` in a thread, up to `depth` items ahead of the reader.

    The order is kept, and an error is raised in place of the item that caused it. Closing the
    generator ends the thread.
    """
    iterator = iter(items)
    end: Any = object()
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        futures = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (item := futures.popleft().result()) is not end:
            futures.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def get_draw_function(predictor: Predictor, source: ImageFiles | Video) -> Draw:
    """A function that draws predictions on frames. In a video, objects keep their colours."""
    if isinstance(source, ImageFiles):
        return predictor.draw
    from .drawing import VideoDrawer  # which imports matplotlib

    return VideoDrawer(predictor.metadata)


def predict_and_draw(
    predictor: Predictor, frames: Iterable[Frame], draw: Draw | None, batch_size: int
) -> Generator[tuple[Frame, Instances, np.ndarray], None, None]:
    """Frames in order, each with its predictions and its drawing, (H, W, 3) uint8, BGR.

    Reading, prediction and drawing run in threads; close the generator to end them.

    Args:
        draw: see :func:`get_draw_function`; None to return the frames themselves.
        batch_size: number of frames that go through the model together.
    """

    def predict(batch: list[Frame]) -> list[tuple[Frame, Instances]]:
        return list(zip(batch, predictor.predict([frame.image for frame in batch])))

    def draw_frame(pair: tuple[Frame, Instances]) -> tuple[Frame, Instances, np.ndarray]:
        frame, instances = pair
        return frame, instances, draw(frame.image, instances) if draw else frame.image

    with ExitStack() as stack:

        def stage(items: Iterable[T], depth: int) -> Iterator[T]:
            return stack.enter_context(closing(prefetch(items, depth)))

        read = stage(frames, batch_size)
        # Masks of large frames are large: at most one batch of them waits to be drawn.
        predicted = stage(map(predict, batched(read, batch_size)), 1)
        yield from stage(map(draw_frame, itertools.chain.from_iterable(predicted)), 1)
