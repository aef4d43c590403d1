#!/usr/bin/env python3
"""Show how YOLACT makes the masks of a picture, as PNG files.

NAME_prototypes.png shows the prototypes of the picture NAME; NAME_detection_0.png, and so on for
each chosen detection, its coefficients, the mask as it builds up from the strongest prototypes, and
the mask before and after the crop.
"""

import argparse
import os

import yaml
from detectron2.engine import DefaultPredictor
from detectron2.utils.file_io import PathManager

from yolact_d2 import load_config
from yolact_d2.data import read_image
from yolact_d2.files import save_figure
from yolact_d2.inference.classes import class_metadata
from yolact_d2.visualization.prototype_figures import detection_figure, prototype_sheet
from yolact_d2.visualization.prototypes import record_mask_parts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", required=True, help="the picture")
    parser.add_argument("--output", required=True, help="folder for the PNG files")
    parser.add_argument("--confidence-threshold", type=float, default=0.3)
    parser.add_argument("--top-k", type=int, default=3, help="how many detections, the best first")
    parser.add_argument(
        "--detections", type=int, nargs="+", help="these detections instead; 0 is the best"
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="how many prototypes are added one by one"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def build_predictor(args: argparse.Namespace) -> DefaultPredictor:
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a trained model, --opts MODEL.WEIGHTS FILE")
    # The model checks files before Detectron2 reads them.
    cfg.MODEL.WEIGHTS = PathManager.get_local_path(cfg.MODEL.WEIGHTS)
    cfg.MODEL.YOLACT.SCORE_THRESH_TEST = args.confidence_threshold
    return DefaultPredictor(cfg)


def choose(args: argparse.Namespace, num_detections: int) -> list[int]:
    """Which of the detections to show."""
    if args.detections is None:
        return list(range(min(args.top_k, num_detections)))
    absent = [i for i in args.detections if not 0 <= i < num_detections]
    if absent:
        raise ValueError(
            f"--detections: there is no {absent}; the picture has {num_detections}, counted from "
            f"0, with a score of {args.confidence_threshold} or more"
        )
    return args.detections


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if min(args.top_k, args.steps) < 1:
        parser.error("--top-k and --steps must be 1 or more")
    try:
        image = read_image(args.input, format="BGR")
        os.makedirs(args.output, exist_ok=True)
        predictor = build_predictor(args)
    # yacs tells of a wrong key by KeyError, Detectron2 of a missing checkpoint by AssertionError.
    except (OSError, ValueError, KeyError, AssertionError, yaml.YAMLError) as error:
        parser.error(str(error))
    names = class_metadata(predictor.cfg).get("thing_classes")
    parts = record_mask_parts(predictor, image)
    rgb = image[:, :, ::-1]
    stem = os.path.join(args.output, os.path.splitext(os.path.basename(args.input))[0])
    try:
        chosen = choose(args, len(parts.instances))
        save_figure(prototype_sheet(rgb, parts.prototypes), f"{stem}_prototypes.png")
        for i in chosen:
            index = int(parts.instances.pred_classes[i])
            name = names[index] if names else f"class {index}"
            figure = detection_figure(rgb, parts, i, name, args.steps)
            save_figure(figure, f"{stem}_detection_{i}.png")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(
        f"{args.output}: the prototypes and {len(chosen)} of {len(parts.instances)} detections "
        f"with a score of {args.confidence_threshold} or more"
    )


if __name__ == "__main__":
    main()
