import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from tqdm import tqdm

from ..files import check_writable
from .drawing import VideoArtist
from .outputs import (
    Sink,
    WindowClosed,
    check_display,
    picture_files,
    plan_pictures,
    plan_video,
    video_file,
    window,
)
from .pipeline import Stages, process
from .predictor import Predictor
from .results import coco_results
from .sources import ImageFiles, Video

# The rate always as frames per second, never as seconds per frame.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class Done(NamedTuple):
    num_frames: int
    seconds: float
    results: list[dict[str, Any]]
    """See :func:`coco_results`."""


def open_output(source: ImageFiles | Video, output: str | None) -> AbstractContextManager[Sink]:
    """Where the drawings of a source go, checked as far as that can be done before there are any.

    Args:
        output: file or folder, see :func:`plan_pictures` and :func:`plan_video`. None: a window.

    Raises:
        ValueError: naming what is wrong with it.
    """
    if output is None:
        check_display()
        return window(wait=0 if isinstance(source, ImageFiles) else 1)
    if isinstance(source, ImageFiles):
        plan = plan_pictures(source.paths, output)
        for target in plan.values():
            check_writable(target)
        return picture_files(plan)
    target = plan_video(source.name, output)
    check_writable(target)
    return video_file(target, source.fps)


def annotate(
    predictor: Predictor,
    source: ImageFiles | Video,
    output: AbstractContextManager[Sink] | None,
    *,
    batch_size: int,
    keep_results: bool = False,
) -> Done:
    """Find the objects in all frames of a source and draw them, with a progress bar.

    A camera goes on until its window is closed or Ctrl-C is pressed, which is its regular end.

    Args:
        output: see :func:`open_output`. None: nothing is drawn.
        batch_size: how many frames go through the model at once.
        keep_results: collect the results in COCO's format. (Their masks take memory.)
    """
    draw = predictor.draw if isinstance(source, ImageFiles) else VideoArtist(predictor.metadata)
    if output is None:
        output, draw = nullcontext(lambda frame, drawing: None), lambda image, instances: image
    is_camera = isinstance(source, Video) and source.is_camera
    num_frames, results, start = 0, [], time.perf_counter()
    progress = tqdm(total=len(source) or None, unit=" frames", bar_format=_BAR)
    with output as write, Stages() as stages, progress:
        try:
            for frame, found, drawing in process(stages, source, predictor, draw, batch_size):
                write(frame, drawing)
                if keep_results:
                    results += coco_results(frame, found, predictor.metadata)
                num_frames += 1
                progress.update()
        except WindowClosed:
            pass
        except KeyboardInterrupt:
            if not is_camera:
                raise
    return Done(num_frames, time.perf_counter() - start, results)
