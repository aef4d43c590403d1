#!/usr/bin/env python3
"""Draw how YOLACT makes the masks of an image, as PNG files.

For the image NAME.jpg, NAME_prototypes.png shows its prototypes, and NAME_detection_0.png, ... show
the coefficients of each chosen detection, its mask as the strongest prototypes are added, and the
mask before and after the crop.
"""

import argparse
import os
import sys

from yolact_d2 import Predictor, load_config
from yolact_d2.data import read_image
from yolact_d2.inference import drawing_threshold
from yolact_d2.visualization.labels import with_drawable_names
from yolact_d2.visualization.prototype_figures import (
    detection_figure,
    prototype_sheet,
    save_figure,
)
from yolact_d2.visualization.prototypes import record_mask_parts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", required=True, help="the image")
    parser.add_argument("--output", required=True, help="folder for the PNG files")
    parser.add_argument("--confidence-threshold", type=float, help="default: 0.3, or the config's")
    parser.add_argument("--top-k", type=int, default=3, help="draw the best K detections")
    parser.add_argument(
        "--detections", type=int, nargs="+", help="draw these detections instead; 0 is the best"
    )
    parser.add_argument("--steps", type=int, default=6, help="number of prototypes that are drawn")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def build_predictor(args: argparse.Namespace) -> Predictor:
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a trained model, --opts MODEL.WEIGHTS FILE")
    threshold = drawing_threshold(cfg, args.confidence_threshold, default=0.3)
    return Predictor(cfg, confidence_threshold=threshold)


def choose_detections(args: argparse.Namespace, num_detections: int, threshold: float) -> list[int]:
    if args.detections is None:
        return list(range(min(args.top_k, num_detections)))
    missing = [i for i in args.detections if not 0 <= i < num_detections]
    if missing:
        raise ValueError(
            f"--detections: there is no {missing}; the image has {num_detections} detections with "
            f"a score of {threshold} or more, counted from 0"
        )
    return args.detections


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if min(args.top_k, args.steps) < 1:
        parser.error("--top-k and --steps must be 1 or more")
    try:
        image = read_image(args.input, format="BGR")
        os.makedirs(args.output, exist_ok=True)
        predictor = build_predictor(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    names = with_drawable_names(predictor.metadata).get("thing_classes")
    threshold = predictor.model.test_score_thresh
    parts = record_mask_parts(predictor, image)
    rgb = image[:, :, ::-1]
    stem = os.path.join(args.output, os.path.splitext(os.path.basename(args.input))[0])
    try:
        chosen = choose_detections(args, len(parts.instances), threshold)
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
        f"with a score of {threshold} or more"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
