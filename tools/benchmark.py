#!/usr/bin/env python3
"""Measure detectors side by side: speed by stages, memory, arithmetic, training and AP.

A model is [LABEL=]CONFIG[:KEY=VALUE,...]. CONFIG is a file, or a name in Detectron2's model zoo. So
    m550=COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml:INPUT.MIN_SIZE_TEST=550
is Mask R-CNN at 550 px, called m550. See docs/benchmarks.md.
"""

import argparse
import os

from yolact_d2.benchmark import (
    VARIANTS,
    PictureSet,
    Settings,
    Suite,
    TrainingSettings,
    check_variant,
    find_pictures,
    parse_models,
    parse_size,
    render,
    write_report,
)

_REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_DEFAULT_CONFIGS = [
    os.path.join(_REPO, "configs", "yolact_R_50_FPN_550.yaml"),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
]


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", nargs="+", default=_DEFAULT_CONFIGS, metavar="MODEL", help="see above")
    add("--weights", nargs="+", default=[], help="a file, a URL or 'random', for each model")
    add("--input", nargs="+", metavar="PATH", help="pictures, or folders of them")
    add("--sizes", nargs="+", default=["640x427"], help="WIDTHxHEIGHT of generated pictures")
    add("--num-images", type=positive, default=4, help="generated pictures of each size")
    add("--batch-sizes", nargs="+", type=positive, default=[1])
    add("--repeats", type=positive, default=20, help="timed rounds")
    add("--num-detections", type=positive, default=100, help="forced where weights are random")
    add("--variants", nargs="+", default=["float32"], help=f"{', '.join(VARIANTS)}, or a+b")
    add("--dataset", help="a registered dataset, to measure AP on")
    add("--train", action="store_true", help="measure training iterations, too")
    add("--train-batch-size", type=positive, default=2)
    add("--train-objects", type=positive, default=10, help="objects of a training image")
    add("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    add("--output", help="folder for benchmark.json, benchmark.md and benchmark.png")
    add("--opts", nargs="+", default=[], help="config overrides of all models, KEY VALUE ...")
    return parser


def settings(args: argparse.Namespace) -> Settings:
    """
    Raises:
        ValueError: if anything that is named does not exist or does not fit.
    """
    if args.input:
        pictures = [PictureSet("input", files=find_pictures(args.input))]
    else:
        pictures = [
            PictureSet(size, size=parse_size(size), num_generated=args.num_images)
            for size in args.sizes
        ]
    return Settings(
        specs=parse_models(args.config_file, args.weights, args.opts, args.device),
        pictures=pictures,
        variants=[check_variant(name) for name in args.variants],
        batch_sizes=args.batch_sizes,
        repeats=args.repeats,
        num_detections=args.num_detections,
        dataset=args.dataset,
        training=(
            TrainingSettings(args.train_batch_size, args.train_objects) if args.train else None
        ),
    )


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    try:
        suite = Suite(settings(args))
    except ValueError as error:
        parser.error(str(error))
    results = suite.run()
    print(render(results, "simple"))
    if args.output:
        print("\n".join(write_report(results, args.output)))


if __name__ == "__main__":
    main()
