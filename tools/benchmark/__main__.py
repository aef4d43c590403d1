"""Measure detectors side by side: speed by stages, memory, FLOPs, AP and training steps.

    python -m tools.benchmark --output output/benchmark
    python -m tools.benchmark \\
        --model YOLACT yolact_R_50_FPN_550 \\
        --model "Mask R-CNN, 550 px" COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x \\
            INPUT.MIN_SIZE_TEST 550

See docs/benchmarks.md.
"""

import argparse
import os

from detectron2.data import DatasetCatalog

from yolact_d2.checkpoint import CheckpointMismatch
from yolact_d2.data import UnreadableImage
from yolact_d2.files import check_writable
from yolact_d2.inference import find_images

from .exported import parse_exported
from .images import parse_size
from .measure import Benchmark
from .models import parse_model
from .report import render, write_report
from .variants import VARIANTS, is_available

DEFAULT_MODELS = [
    ["YOLACT", "yolact_R_50_FPN_550"],
    ["Mask R-CNN", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"],
]


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        action="append",
        metavar="WORD",
        help="LABEL CONFIG [KEY VALUE ...] of each model. CONFIG is a YAML file or a name in "
        "this project's or in Detectron2's model zoo. Weights are random without MODEL.WEIGHTS. "
        "Default: YOLACT and Mask R-CNN with ResNet-50",
    )
    add(
        "--exported",
        nargs="+",
        action="append",
        default=[],
        metavar="WORD",
        help="LABEL FILE [bf16] of each exported file (.onnx or .xml), see docs/deployment.md",
    )
    add("--images", nargs="+", metavar="PATH", help="image files, folders or globs")
    add("--sizes", nargs="+", default=["640x427"], help="WIDTHxHEIGHT of generated images")
    add("--num-images", type=positive, default=4, help="generated images of each size")
    add("--batch-sizes", nargs="+", type=positive, default=[1])
    add("--variants", nargs="+", default=["float32"], help=f"{', '.join(VARIANTS)}, or a+b")
    add("--repeats", type=positive, default=20, help="timed rounds")
    add("--dataset", help="a registered dataset: measure AP of the models with weights")
    add("--train", action="store_true", help="measure training steps, too")
    add("--train-batch-size", type=positive, default=2)
    add("--device", help="cpu, cuda, ...; default: a GPU if there is one")
    add("--output", help="folder for benchmark.md, benchmark.json and benchmark.png")
    return parser


def build_benchmark(args: argparse.Namespace) -> Benchmark:
    """
    Raises:
        ValueError: naming the argument that is wrong.
    """
    specs = [parse_model(words, args.device) for words in args.model or DEFAULT_MODELS]
    exported = [parse_exported(words) for words in args.exported]
    labels = [spec.label for spec in specs] + [words[0] for words in args.exported]
    if len({*labels}) < len(labels):
        raise ValueError("two models have the same label")
    unknown = {part for name in args.variants for part in name.split("+")} - VARIANTS.keys()
    if unknown:
        raise ValueError(f"unknown variants {sorted(unknown)}; known are {', '.join(VARIANTS)}")
    architectures = {spec.load_cfg().MODEL.META_ARCHITECTURE for spec in specs}
    if not any(is_available(v, a) for v in args.variants for a in architectures):
        raise ValueError(f"no model has the variants {', '.join(args.variants)}")
    if args.dataset and args.dataset not in DatasetCatalog:
        raise ValueError(f"--dataset: {args.dataset!r} is not registered")
    if args.dataset and not any(spec.load_cfg().MODEL.WEIGHTS for spec in specs):
        raise ValueError("--dataset measures AP, but all models have random weights")
    if args.output:
        check_writable(os.path.join(args.output, "benchmark.md"))
    if args.images:
        images = {"images": find_images(args.images)}
    else:
        seeds = range(args.num_images)
        images = {size: [(*parse_size(size), seed) for seed in seeds] for size in args.sizes}
    return Benchmark(
        specs,
        images,
        variants=args.variants,
        batch_sizes=args.batch_sizes,
        repeats=args.repeats,
        dataset=args.dataset,
        exported=exported,
        train_batch_size=args.train_batch_size if args.train else None,
    )


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    try:
        benchmark = build_benchmark(args)
    except ValueError as error:
        parser.error(str(error))
    try:
        results = benchmark.run()
    except (CheckpointMismatch, UnreadableImage) as error:
        parser.error(str(error))
    if args.output:
        write_report(results, args.output)
    print(render(results))


if __name__ == "__main__":
    main()
