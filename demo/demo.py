#!/usr/bin/env python3
"""Find the objects in images, a video or a camera stream, and draw them."""

import argparse
import json
import sys
import time
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
from tqdm import tqdm

from yolact_d2 import Predictor, load_config, model_zoo
from yolact_d2.files import atomic_write, check_writable
from yolact_d2.inference import (
    ImageFiles,
    Video,
    WindowClosed,
    Writer,
    coco_results,
    drawing_threshold,
    find_images,
    get_draw_function,
    open_output,
    predict_and_draw,
)

# The exit status of a program that is ended by Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130


def camera(text: str) -> int | str:
    """The number of a camera, or the path of a device."""
    return int(text) if text.isdigit() else text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE|MODEL",
        help="a config file, or the name of a model: " + ", ".join(model_zoo.names()),
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders, globs in quotes")
    source.add_argument("--video-input", metavar="FILE|URL")
    source.add_argument(
        "--webcam", nargs="?", type=camera, const=0, metavar="N|DEVICE", help="default: 0"
    )
    parser.add_argument("--output", help="file or folder; default: show the drawings in a window")
    parser.add_argument("--results-json", metavar="FILE", help="write results in COCO's format")
    parser.add_argument(
        "--polygons", action="store_true", help="write masks as polygons to --results-json, not RLE"
    )
    parser.add_argument(
        "--confidence-threshold", type=float,
        help="default: 0.5, or the config's SCORE_THRESH_TEST if that is above 0",
    )  # fmt: skip
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME",
        help="show and write these classes only; numbers from 0 if the model has no class names",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, default=0, help="keep the best K objects of an image")
    parser.add_argument("--batch-size", type=int, help="default: 4; for a camera 1")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def open_source(args: argparse.Namespace) -> ImageFiles | Video:
    if args.input is not None:
        return ImageFiles(find_images(args.input))
    return Video(args.video_input if args.webcam is None else args.webcam)


def run(
    predictor: Predictor,
    source: ImageFiles | Video,
    output: AbstractContextManager[Writer] | None,
    *,
    batch_size: int,
    keep_results: bool,
    polygons: bool,
) -> tuple[int, list[dict[str, Any]]]:
    """Process all frames with a progress bar; returns their number and the COCO results."""
    draw = None if output is None else get_draw_function(predictor, source)
    frames = predict_and_draw(predictor, source, draw, batch_size)
    progress = tqdm(total=len(source) or None, unit=" frames")
    results = []
    with output or nullcontext() as write, closing(frames), progress:
        try:
            for frame, instances, drawing in frames:
                if write is not None:
                    write(frame, drawing)
                if keep_results:
                    results += coco_results(frame, instances, predictor.metadata, polygons)
                progress.update()
        except WindowClosed:
            pass
        except KeyboardInterrupt:  # nothing else ends a live source
            if not source.is_live:
                raise
    return progress.n, results


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    try:
        cfg = load_config(args.config_file, args.opts)
        source = open_source(args)
        batch_size = (1 if source.is_live else 4) if args.batch_size is None else args.batch_size
        if batch_size < 1:
            raise ValueError(f"--batch-size is {batch_size}, less than 1")
        if args.polygons and args.results_json is None:
            raise ValueError("--polygons needs --results-json")
        output = None
        if args.output is not None or args.results_json is None:  # results need no window
            output = open_output(source, args.output)
        if args.results_json is not None:
            check_writable(args.results_json)
        predictor = Predictor(
            cfg,
            confidence_threshold=drawing_threshold(cfg, args.confidence_threshold, default=0.5),
            top_k=args.top_k,
            classes=args.classes,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))

    np.random.seed(0)  # for the colours of Detectron2's visualizers
    start = time.perf_counter()
    try:
        with source if isinstance(source, Video) else nullcontext():
            num_frames, results = run(
                predictor, source, output,
                batch_size=batch_size, keep_results=args.results_json is not None,
                polygons=args.polygons,
            )  # fmt: skip
        if args.results_json is not None:
            with atomic_write(args.results_json) as partial, open(partial, "w") as file:
                json.dump(results, file)
    except KeyboardInterrupt:
        print("interrupted: complete files are kept", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # such as a full disk
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    finally:
        report_failed(source)
    seconds = time.perf_counter() - start
    print(f"{num_frames} frames in {seconds:.1f} s, {num_frames / seconds:.1f} frames per second")
    return 1 if source.failed else 0


def report_failed(source: ImageFiles | Video) -> None:
    skipped = "skipped " if isinstance(source, ImageFiles) else ""
    for path, reason in source.failed:
        print(f"{skipped}{path}: {reason}", file=sys.stderr)
    if source.failed and isinstance(source, ImageFiles):
        print(f"{len(source.failed)} of {len(source)} could not be read", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
