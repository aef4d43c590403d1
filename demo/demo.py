#!/usr/bin/env python3
"""Find and draw the objects in pictures, a video or what a camera sees."""

import argparse
import os
import sys

import numpy as np
from detectron2.config import CfgNode

from yolact_d2 import Predictor, load_config, model_zoo
from yolact_d2.files import check_writable
from yolact_d2.inference import ImageFiles, Video, annotate, find_images, open_output, write_results

# As a shell reports a program that was ended by Ctrl-C.
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE|MODEL",
        help="a config, or a model's name: " + ", ".join(model_zoo.names()),
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="pictures, folders of them, globs in quotes")
    source.add_argument("--video-input", metavar="FILE")
    source.add_argument("--webcam", nargs="?", type=int, const=0, metavar="N", help="default: 0")
    parser.add_argument("--output", help="file or folder; without it a window shows the drawings")
    parser.add_argument("--results-json", metavar="FILE", help="results in COCO's format")
    parser.add_argument("--confidence-threshold", type=float, default=0.5)
    parser.add_argument("--top-k", type=int, default=0, help="at most so many objects, the best")
    parser.add_argument("--batch-size", type=int, help="frames at once; default 4, of a camera 1")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def read_config(name: str, opts: list) -> CfgNode:
    """The config of a path or of a model's name."""
    if os.path.dirname(name) and not os.path.isfile(name):
        raise ValueError(f"there is no config file {name!r}")
    path = name if os.path.isfile(name) else model_zoo.get_config_file(name)
    try:
        return load_config(path, opts)
    except Exception as error:  # YAML and yacs raise many kinds
        raise ValueError(f"{path}, or --opts: {error}") from error


def open_source(args: argparse.Namespace) -> ImageFiles | Video:
    if args.input is not None:
        return ImageFiles(find_images(args.input))
    return Video(args.video_input if args.webcam is None else args.webcam)


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if args.batch_size is None:
        args.batch_size = 4 if args.webcam is None else 1
    try:
        if args.batch_size < 1:
            raise ValueError(f"--batch-size is {args.batch_size}, less than 1")
        cfg = read_config(args.config_file, args.opts)
        source = open_source(args)
        # Results alone need no window.
        drawn = args.output is not None or args.results_json is None
        output = open_output(source, args.output) if drawn else None
        if args.results_json is not None:
            check_writable(args.results_json)
        predictor = Predictor(cfg, confidence_threshold=args.confidence_threshold, top_k=args.top_k)
    except ValueError as error:
        parser.error(str(error))

    np.random.seed(0)  # Detectron2's visualizers draw their colours from it
    try:
        done = annotate(
            predictor, source, output,
            batch_size=args.batch_size, keep_results=args.results_json is not None,
        )  # fmt: skip
        if args.results_json is not None:
            write_results(args.results_json, done.results)
    except KeyboardInterrupt:
        print("interrupted: what was complete is kept", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # such as a full disk
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    finally:
        report_failed(source)
    print(
        f"{done.num_frames} frames in {done.seconds:.1f} s, "
        f"{done.num_frames / done.seconds:.1f} frames per second"
    )
    return 1 if source.failed else 0


def report_failed(source: ImageFiles | Video) -> None:
    skipped = "skipped " if isinstance(source, ImageFiles) else ""
    for path, reason in source.failed:
        print(f"{skipped}{path}: {reason}", file=sys.stderr)
    if source.failed and isinstance(source, ImageFiles):
        print(f"{len(source.failed)} of {len(source)} could not be read", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
