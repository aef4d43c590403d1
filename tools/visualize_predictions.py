#!/usr/bin/env python3
"""Draw the ground truth (left) and the predictions (right) of images of a test dataset."""

import argparse
import math
import os

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.file_io import PathManager
from detectron2.utils.visualizer import Visualizer

from yolact_d2 import load_config
from yolact_d2.data import UnreadableImage, check_datasets, read_image
from yolact_d2.files import check_writable, save_image
from yolact_d2.visualization.sheet import sheet


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=20)
    parser.add_argument("--sheet", help="PNG file for all of the pictures in one, too")
    parser.add_argument("--confidence-threshold", type=float, default=0.5)
    parser.add_argument("--scale", type=float, default=2.0, help="size of the drawing")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides, KEY VALUE ...")
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.num_images < 1:
        parser.error("--num-images must be 1 or more")
    try:
        cfg = load_config(args.config_file, args.opts)
        cfg.MODEL.YOLACT.SCORE_THRESH_TEST = args.confidence_threshold
        check_datasets(cfg, "DATASETS.TEST")
        os.makedirs(args.output, exist_ok=True)
        if args.sheet:
            check_writable(args.sheet)
        # The model checks files before Detectron2 reads them.
        cfg.MODEL.WEIGHTS = PathManager.get_local_path(cfg.MODEL.WEIGHTS)
        predictor = DefaultPredictor(cfg)
    # yacs tells of a wrong key by KeyError, Detectron2 of a missing checkpoint by AssertionError.
    except (OSError, ValueError, KeyError, AssertionError) as error:
        parser.error(str(error))
    name = cfg.DATASETS.TEST[0]
    records = DatasetCatalog.get(name)[: args.num_images]
    metadata = MetadataCatalog.get(name)

    drawings = []
    for record in records:
        try:
            image = read_image(record["file_name"], format="BGR")
        except UnreadableImage as error:
            parser.error(str(error))
        rgb = image[:, :, ::-1]
        instances = predictor(image)["instances"].to("cpu")
        truth = Visualizer(rgb, metadata, args.scale).draw_dataset_dict(record)
        prediction = Visualizer(rgb, metadata, args.scale).draw_instance_predictions(instances)
        both = np.concatenate([truth.get_image(), prediction.get_image()], axis=1)
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        save_image(both, os.path.join(args.output, f"{stem}.png"))
        if args.sheet:
            drawings.append(both)
    if drawings:
        save_image(sheet(drawings, columns=math.ceil(math.sqrt(len(drawings) / 2))), args.sheet)
    print(f"{len(records)} pictures in {args.output}")


if __name__ == "__main__":
    main()
