#!/usr/bin/env python3
"""Draw images of a test dataset with their ground truth (left) and the predictions (right)."""

import argparse
import math
import os
import sys
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer

from yolact_d2 import Predictor, load_config
from yolact_d2.data import UnreadableImage, check_datasets, read_image
from yolact_d2.files import check_writable, save_image
from yolact_d2.inference import drawing_threshold
from yolact_d2.inference.labels import get_image, with_drawable_names

_GAP = 8  # pixels


def sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange images in rows on white, each in the middle of a cell.

    All cells have the size of the largest image, plus a gap.

    Args:
        images: (H, W, 3) uint8, of any sizes; at least one.
        columns: number of images in a row.

    Returns:
        (H', W', 3) uint8
    """
    height, width = np.max([image.shape[:2] for image in images], axis=0) + _GAP
    rows = math.ceil(len(images) / columns)
    drawing = np.full((rows * height, min(columns, len(images)) * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        h, w = image.shape[:2]
        y = i // columns * height + (height - h) // 2
        x = i % columns * width + (width - w) // 2
        drawing[y : y + h, x : x + w] = image
    return drawing


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, help="folder for the drawings")
    parser.add_argument("--num-images", type=int, default=20)
    parser.add_argument("--sheet", metavar="FILE", help="PNG file for all drawings in one")
    parser.add_argument("--confidence-threshold", type=float, help="default: 0.5, or the config's")
    parser.add_argument("--scale", type=float, default=2.0, help="size of the drawings, up to 10")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides, KEY VALUE ...")
    return parser


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if args.num_images < 1:
        parser.error("--num-images must be 1 or more")
    if not 0 < args.scale <= 10:
        parser.error(f"--scale is {args.scale:g}, not above 0 and at most 10")
    try:
        cfg = load_config(args.config_file, args.opts)
        check_datasets(cfg, "DATASETS.TEST")
        os.makedirs(args.output, exist_ok=True)
        if args.sheet:
            check_writable(args.sheet)
        threshold = drawing_threshold(cfg, args.confidence_threshold, default=0.5)
        predictor = Predictor(cfg, confidence_threshold=threshold)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    name = cfg.DATASETS.TEST[0]
    metadata = with_drawable_names(MetadataCatalog.get(name))

    drawings = []
    for record in DatasetCatalog.get(name)[: args.num_images]:
        try:
            image = read_image(record["file_name"], format="BGR")
        except UnreadableImage as error:
            parser.error(str(error))
        rgb = image[:, :, ::-1]
        truth = Visualizer(rgb, metadata, args.scale).draw_dataset_dict(record)
        prediction = Visualizer(rgb, metadata, args.scale)
        prediction = prediction.draw_instance_predictions(predictor(image))
        drawings.append(np.concatenate([get_image(truth), get_image(prediction)], axis=1))
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        save_image(drawings[-1], os.path.join(args.output, f"{stem}.png"))
    if args.sheet and drawings:
        save_image(sheet(drawings, columns=math.ceil(math.sqrt(len(drawings) / 2))), args.sheet)
    print(f"{len(drawings)} drawings in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
