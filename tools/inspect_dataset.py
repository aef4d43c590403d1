#!/usr/bin/env python3
"""Inspect a COCO JSON and its images before training on them.

Prints statistics, how many objects each input size would lose, and all issues of annotations and
images; on request, draws samples as training will see them. Exits with 0 if there are no issues, 1
if there are, and 2 if the input cannot be inspected.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer

from yolact_d2 import load_config
from yolact_d2.config import model_node
from yolact_d2.data.coco_json import class_numbers, read_coco, to_dataset_dicts
from yolact_d2.data.dataset_mapper import YOLACTDatasetMapper
from yolact_d2.data.inspection import format_issues, inspect_dataset, write_issues
from yolact_d2.data.statistics import format_statistics
from yolact_d2.files import check_writable, save_image
from yolact_d2.inference.labels import drawable_names, get_image

Record = dict[str, Any]


def augmented_samples(
    cfg,
    images: Sequence[Record],
    annotations: Sequence[Record],
    categories: Sequence[Record],
    image_root: str,
    num_samples: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Draw images of a COCO dataset, evenly spread over it, as the mapper gives them to the model.

    Args:
        cfg: for the augmentation.
        images: to pick from.
        annotations: usable ones; those of other images are ignored.
        categories: of the annotations.
        image_root: the folder of the images.
        num_samples: how many images to pick, at most.

    Yields:
        the file name, as the JSON has it, and the drawing, (H, W, 3) uint8, RGB.
    """
    every = max(len(images) / num_samples, 1)
    picked = [images[int(i * every)] for i in range(min(num_samples, len(images)))]
    ids = {image["id"] for image in picked}
    coco = {"images": picked, "annotations": [a for a in annotations if a["image_id"] in ids]}
    names = drawable_names(tuple(c["name"] for c in sorted(categories, key=lambda c: c["id"])))
    mapper = YOLACTDatasetMapper(cfg)
    for record in to_dataset_dicts(coco, image_root, class_numbers(categories)):
        drawing = _draw(mapper(record), names, cfg.INPUT.FORMAT)
        yield os.path.relpath(record["file_name"], image_root), drawing


def _draw(sample: Record, names: Sequence[str], image_format: str) -> np.ndarray:
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0).clamp(0, 255), image_format)
    objects = sample["instances"]
    labels = [
        f"{names[i]} (crowd)" if crowd else names[i]
        for i, crowd in zip(objects.gt_classes.tolist(), objects.gt_iscrowd.tolist())
    ]
    drawing = Visualizer(image).overlay_instances(
        boxes=objects.gt_boxes, labels=labels, masks=objects.gt_masks.tensor.numpy()
    )
    return get_image(drawing)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, help="the COCO JSON")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument(
        "--image-sizes",
        type=int,
        nargs="+",
        default=[400, 550, 700],
        help="values of INPUT.IMAGE_SIZE, which YOLACT has",
    )
    parser.add_argument("--defects-json", help="also write the issues to this file")
    parser.add_argument(
        "--samples", type=int, default=0, help="number of images to draw, as training sees them"
    )
    parser.add_argument("--output", help="folder for the samples")
    parser.add_argument(
        "--config-file", default="yolact_R_50_FPN_550", help="of the model, for its augmentation"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def draw_samples(args: argparse.Namespace, cfg, found) -> None:
    """Draw images without issues, and all of their objects."""
    bad = {x.image_id for x in found.issues if isinstance(x.image_id, (int, str))}
    annotated = {annotation["image_id"] for annotation in found.annotations}
    images = [i for i in found.images if i["id"] in annotated and i["id"] not in bad]
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
    if args.samples and not args.output:
        parser.error("--samples needs --output")
    if min(args.image_sizes) < 1:
        parser.error("--image-sizes must be 1 or more")
    if not os.path.isdir(args.images):
        parser.error(f"there is no folder {args.images}")
    try:
        cfg = load_config(args.config_file, args.opts)
        coco = read_coco(args.json)
        if args.output:
            os.makedirs(args.output, exist_ok=True)
        if args.defects_json:
            check_writable(args.defects_json)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    found = inspect_dataset(coco, args.images, show_progress=True)
    statistics = format_statistics(
        *(found.images, found.annotations, found.categories),
        args.image_sizes if model_node(cfg) == "YOLACT" else (),
        cfg.INPUT.MIN_BOX_SIZE,
    )
    print(statistics, format_issues(found.issues), sep="\n\n")
    try:
        if args.defects_json:
            write_issues(found.issues, args.defects_json)
        if args.samples:
            draw_samples(args, cfg, found)
    except OSError as error:
        parser.error(str(error))
    return 1 if found.issues else 0


if __name__ == "__main__":
    sys.exit(main())
