#!/usr/bin/env python3
"""Time Fast NMS against ordinary NMS, and YOLACT's mask stage against Mask R-CNN's."""

import argparse
import json

import torch
from tabulate import tabulate

from yolact_d2.benchmark import parse_size
from yolact_d2.benchmark.ops import benchmark_masks, benchmark_nms
from yolact_d2.benchmark.specs import check_device


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--nms-boxes", nargs="+", type=int, default=[100, 500, 1000])
    add("--mask-boxes", nargs="+", type=int, default=[10, 100])
    add("--sizes", nargs="+", default=["640x427", "1920x1080", "3840x2160"])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=int, default=20, help="timed rounds")
    add("--output", help="a JSON file")
    args = parser.parse_args()
    if min(args.repeats, *args.nms_boxes, *args.mask_boxes) < 1:
        parser.error("numbers must be positive")
    try:
        check_device(args.device)
        args.sizes = [parse_size(size) for size in args.sizes]
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    tables = {
        "nms": benchmark_nms(args.nms_boxes, device, args.repeats),
        "masks": benchmark_masks(args.mask_boxes, args.sizes, device, args.repeats),
    }
    for name, rows in tables.items():
        print(f"{name} (seconds)")
        print(tabulate(rows, headers="keys", floatfmt=".5f"), end="\n\n")
    if args.output:
        with open(args.output, "w") as file:
            json.dump(tables, file, indent=1)


if __name__ == "__main__":
    main()
