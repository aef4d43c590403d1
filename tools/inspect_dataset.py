#!/usr/bin/env python3
"""Inspect a COCO JSON and its images before training on them.

Prints what is in it, how many objects each input size would lose, and every defect; on request,
draws samples as training will see them. Exits with 0 if there are no defects, 1 if there are, and 2
if it cannot look.
"""

import argparse
import os
import sys

import yaml
from detectron2.config import get_cfg
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from yolact_d2 import add_yolact_config, load_config
from yolact_d2.data.inspection import (
    collect_statistics,
    format_defects,
    format_statistics,
    inspect_dataset,
    read_coco,
    write_defects,
)
from yolact_d2.files import check_writable, save_image
from yolact_d2.visualization.samples import augmented_samples


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, help="the COCO JSON")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument(
        "--image-sizes", type=int, nargs="+", default=[400, 550, 700], help="INPUT.IMAGE_SIZE"
    )
    parser.add_argument("--defects-json", help="file to write the defects to, too")
    parser.add_argument(
        "--samples", type=int, default=0, help="draw so many sound images after augmentation"
    )
    parser.add_argument("--output", help="folder for the samples")
    parser.add_argument("--config-file", help="of the model, for its augmentation")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def build_cfg(args: argparse.Namespace):
    if args.config_file:
        return load_config(args.config_file, args.opts)
    cfg = get_cfg()
    add_yolact_config(cfg)
    return cfg


def draw_samples(args: argparse.Namespace, cfg, found) -> None:
    """Draw images that have no defect and, of their objects, all."""
    defective = [defect.image_id for defect in found.defects]  # of whatever type
    annotated = {annotation["image_id"] for annotation in found.annotations}
    images = [i for i in found.images if i["id"] in annotated and i["id"] not in defective]
    seed_all_rng(0)
    samples = augmented_samples(
        cfg, images, found.annotations, found.categories, args.images, args.samples
    )
    num = 0
    for num, (name, drawing) in enumerate(samples, start=1):
        stem = os.path.splitext(name)[0].replace(os.sep, "_")
        save_image(drawing, os.path.join(args.output, f"{num:03d}_{stem}.png"))
    print(f"\n{num} samples in {args.output}")


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if args.samples and not (args.output and args.config_file):
        parser.error("--samples needs --output and --config-file")
    if min(args.image_sizes) < 1:
        parser.error("--image-sizes must be 1 or more")
    if not os.path.isdir(args.images):
        parser.error(f"there is no folder {args.images}")
    try:
        cfg = build_cfg(args)
        coco = read_coco(args.json)
        if args.output:
            os.makedirs(args.output, exist_ok=True)
        if args.defects_json:
            check_writable(args.defects_json)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        parser.error(str(error))

    def progress(items, total):
        return tqdm(items, total=total, unit=" images")

    found = inspect_dataset(coco, args.images, progress)
    statistics = collect_statistics(
        found.images,
        found.annotations,
        found.categories,
        args.image_sizes,
        cfg.INPUT.MIN_BOX_SIZE,
    )
    print(
        format_statistics(statistics, args.image_sizes), format_defects(found.defects), sep="\n\n"
    )
    try:
        if args.defects_json:
            write_defects(found.defects, args.defects_json)
        if args.samples:
            draw_samples(args, cfg, found)
    except OSError as error:
        parser.error(str(error))
    return 1 if found.defects else 0


if __name__ == "__main__":
    sys.exit(main())
