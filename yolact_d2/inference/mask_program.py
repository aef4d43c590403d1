"""The command line of the programs that draw how the masks of an image are made."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..config import load_config, model_node
from ..data import read_image
from .labels import with_drawable_names
from .panels import save_figure
from .predictor import Predictor, drawing_threshold


def build_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", required=True, help="the image")
    parser.add_argument("--output", required=True, help="folder for the PNG files")
    parser.add_argument("--confidence-threshold", type=float, help="default: 0.3, or the config's")
    parser.add_argument("--top-k", type=int, default=3, help="draw the best K detections")
    parser.add_argument(
        "--detections", type=int, nargs="+", help="draw these detections instead; 0 is the best"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def draw_figures(
    args: argparse.Namespace,
    *,
    node: str,
    name: str,
    record: Callable[[Predictor, np.ndarray], Any],
    draw_image: Callable[[np.ndarray, Any], Figure],
    draw_detection: Callable[[np.ndarray, Any, int, str], Figure],
) -> None:
    """Write one figure for an image, and one for each chosen detection.

    Args:
        args: of :func:`build_parser`.
        node: the node of ``cfg.MODEL`` whose models have what is drawn, see :func:`model_node`.
        name: of what is drawn, and the end of the name of the image's figure.
        record: predicts on the image, (H, W, 3) uint8, BGR. It returns what the masks are made of,
            among it the predictions, "instances".
        draw_image: takes the image, RGB, and what was recorded.
        draw_detection: takes also the number of a detection and the name of its class.

    Raises:
        OSError, ValueError: naming the file, key or option that is wrong.
    """
    if args.top_k < 1:
        raise ValueError(f"--top-k is {args.top_k}, less than 1")
    image = read_image(args.input, format="BGR")
    os.makedirs(args.output, exist_ok=True)
    cfg = load_config(args.config_file, args.opts)
    if model_node(cfg) != node:
        raise ValueError(f"{args.config_file}: a {cfg.MODEL.META_ARCHITECTURE} has no {name}")
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name a trained model, --opts MODEL.WEIGHTS FILE")
    threshold = drawing_threshold(cfg, args.confidence_threshold, default=0.3)
    predictor = Predictor(cfg, confidence_threshold=threshold)

    parts = record(predictor, image)
    names = with_drawable_names(predictor.metadata).get("thing_classes")
    chosen = _choose_detections(args, len(parts.instances), threshold)
    rgb = image[:, :, ::-1]
    stem = os.path.join(args.output, os.path.splitext(os.path.basename(args.input))[0])
    save_figure(draw_image(rgb, parts), f"{stem}_{name}.png")
    for i in chosen:
        index = int(parts.instances.pred_classes[i])
        figure = draw_detection(rgb, parts, i, names[index] if names else f"class {index}")
        save_figure(figure, f"{stem}_detection_{i}.png")
    print(
        f"{args.output}: the {name} and {len(chosen)} of {len(parts.instances)} detections "
        f"with a score of {threshold} or more"
    )


def _choose_detections(
    args: argparse.Namespace, num_detections: int, threshold: float
) -> list[int]:
    if args.detections is None:
        return list(range(min(args.top_k, num_detections)))
    missing = [i for i in args.detections if not 0 <= i < num_detections]
    if missing:
        raise ValueError(
            f"--detections: there is no {missing}; the image has {num_detections} detections with "
            f"a score of {threshold} or more, counted from 0"
        )
    return args.detections
