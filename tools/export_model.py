#!/usr/bin/env python3
"""Export a model for other runtimes, and compare the file with the model on images.

    python tools/export_model.py --config-file yolact_R_50_FPN_550 --format onnx \\
        --output yolact.onnx --check a.jpg b.jpg --opts MODEL.WEIGHTS model.pth

The exit status is 1 if the file and the model disagree. See docs/deployment.md.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances, pairwise_iou

from yolact_d2 import Predictor, load_config
from yolact_d2.config import model_node
from yolact_d2.data import read_image
from yolact_d2.export import export_onnx, export_openvino, export_program, quantize
from yolact_d2.export.graph import IMAGES, OUTPUTS
from yolact_d2.files import check_writable
from yolact_d2.inference import find_images
from yolact_d2.modeling import YOLACT
from yolact_runtime import Detections
from yolact_runtime import Predictor as RuntimePredictor

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2"}
_PACKAGES = {"onnx": ["onnx", "onnxscript"], "openvino": ["onnx", "onnxscript", "openvino"]}
# A detection of the file matches one of the model of the same class within these.
_MAX_SCORE_DIFFERENCE = 2e-3
_MAX_BOX_DIFFERENCE = 0.1  # pixels
# What the exit status demands: the share of all detections that are matched, and the 5th percentile
# of the mask IoU of the matched.
_LEAST, _LEAST_INT8 = (0.99, 0.95), (0.8, 0.5)


class Comparison(NamedTuple):
    """A file against its model, for some images."""

    num_detections: int
    num_found: int
    num_matched: int
    mask_ious: list[float]
    seconds: list[tuple[float, float]]
    """Of the model and of the file, for each image."""

    def agrees(self, least_matched: float, least_iou: float) -> bool:
        """
        Args:
            least_matched: share of the detections, of the model or of the file if it has more.
            least_iou: 5th percentile of the mask IoU of the matched.
        """
        wanted = max(self.num_detections, self.num_found)
        is_matched = self.num_matched >= least_matched * wanted
        return is_matched and bool(np.percentile(self.mask_ious, 5) >= least_iou)

    def report(self) -> str:
        ious = self.mask_ious or [float("nan")]
        model, file = (median(x) for x in zip(*self.seconds))
        return (
            f"{self.num_matched} of {self.num_detections} detections of the model are matched by "
            f"the {self.num_found} of the file\n"
            f"mask IoU of the matched: 5th percentile {np.percentile(ious, 5):.4f}, least "
            f"{min(ious):.4f}\n"
            f"time of an image: {1000 * file:.0f} ms, {file / model:.2f} of the model's "
            f"{1000 * model:.0f} ms"
        )


def match(expected: Instances, got: Detections, int8: bool) -> list[tuple[int, int]]:
    """Pairs of detections of the same class, of the model and of the file, each in one pair.

    Within `_MAX_SCORE_DIFFERENCE` and `_MAX_BOX_DIFFERENCE`; in int8, with a box IoU above 0.5.
    """
    boxes = torch.from_numpy(got.boxes)
    same = expected.pred_classes[:, None] == torch.from_numpy(got.classes)
    if int8:
        ious = pairwise_iou(expected.pred_boxes, type(expected.pred_boxes)(boxes))
        costs = 1 - ious.masked_fill(~same, -1)
        limit = 0.5
    else:
        scores = torch.from_numpy(got.scores)
        costs = (expected.pred_boxes.tensor[:, None] - boxes).abs().amax(dim=2)
        far = (expected.scores[:, None] - scores).abs() > _MAX_SCORE_DIFFERENCE
        costs = costs.masked_fill(far | ~same, torch.inf)
        limit = _MAX_BOX_DIFFERENCE
    pairs = []
    for i in range(len(expected)):
        j = int(costs[i].argmin()) if len(boxes) else 0
        if len(boxes) and costs[i, j] <= limit:
            pairs.append((i, j))
            costs[:, j] = torch.inf
    return pairs


@torch.no_grad()
def detect(predictor: Predictor, runtime: RuntimePredictor, image: np.ndarray) -> Instances:
    """The detections of the model. EmbedMask gets the image as it is resized for the file."""
    if isinstance(predictor.model, YOLACT):
        return predictor(image)
    inputs, (height, width) = runtime.prepare(image)
    resized = torch.from_numpy(inputs["image"][0, :, :height, :width])
    x = {"image": resized, "height": image.shape[0], "width": image.shape[1]}
    return predictor.model([x])[0]["instances"]


def compare(
    predictor: Predictor, runtime: RuntimePredictor, images: Sequence[np.ndarray], int8: bool
) -> Comparison:
    """
    Args:
        images: (H, W, 3) uint8, BGR.

    Raises:
        ValueError: if neither finds an object.
    """
    num_detections = num_found = num_matched = 0
    ious, seconds = [], []
    for image in images:
        start = perf_counter()
        expected = detect(predictor, runtime, image)
        middle = perf_counter()
        got = runtime(image)
        seconds.append((middle - start, perf_counter() - middle))
        pairs = match(expected, got, int8)
        num_detections += len(expected)
        num_found += len(got.scores)
        num_matched += len(pairs)
        for i, j in pairs:
            a, b = expected.pred_masks[i].numpy(), got.masks[j]
            union = (a | b).sum()
            ious.append(float((a & b).sum() / union) if union else 1.0)
    if not num_detections and not num_found:
        raise ValueError(
            "nothing to compare: neither the model nor the file finds an object in the images; use "
            "others"
        )
    return Comparison(num_detections, num_found, num_matched, ious, seconds)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--format", choices=_SUFFIXES, default="onnx")
    parser.add_argument("--output", required=True, help="the file")
    parser.add_argument("--outputs", choices=OUTPUTS, default="masks")
    parser.add_argument("--image", choices=IMAGES, help="default: uint8; EmbedMask takes float")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of EmbedMask's images"
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators; default 20")
    parser.add_argument("--int8", action="store_true", help="needs --calibration")
    parser.add_argument(
        "--calibration", help="folder of images for int8, 8 or more; the first 300 are used"
    )
    parser.add_argument("--check", nargs="+", default=[], help="images to compare")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE ..."
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        ImportError: naming the package that is missing.
        ValueError: naming the option that is wrong.
    """
    suffix = _SUFFIXES[args.format]
    if not args.output.endswith(suffix):
        raise ValueError(f"--output {args.output} does not end in {suffix}")
    check_writable(args.output)
    if args.int8 and args.format == "torch_export":
        raise ValueError("--int8 is for the formats onnx and openvino")
    if args.int8 and not args.calibration:
        raise ValueError("--int8 needs --calibration, a folder of real images")
    if args.calibration and not args.int8:
        raise ValueError("--calibration is for --int8")
    if args.opset is not None and args.format == "torch_export":
        raise ValueError("--opset is for the formats onnx and openvino")
    runs = args.format != "torch_export" and args.outputs in ("masks", "full")
    if (args.check or args.int8) and not runs:
        raise ValueError(
            "--check and --int8 are for the formats onnx and openvino, with the outputs masks or "
            "full"
        )
    packages = [(name, args.format) for name in _PACKAGES.get(args.format, [])]
    if args.format == "onnx" and (args.check or args.int8):
        packages.append(("onnxruntime", "onnx"))
    if args.int8:
        packages.append(("nncf", "int8"))
    for name, extra in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"{name} is missing: pip install 'yolact_d2[{extra}]'") from error


def export(args: argparse.Namespace, predictor: Predictor, images: Sequence[str]) -> None:
    is_yolact = isinstance(predictor.model, YOLACT)
    options = {
        "outputs": args.outputs,
        "image": args.image or ("uint8" if is_yolact else "float"),
        "metadata": predictor.metadata,
        "size": tuple(args.size) if args.size else None,
    }
    if args.format == "torch_export":
        export_program(predictor.model, args.output, **options)
        return
    to_file = export_onnx if args.format == "onnx" else export_openvino
    options["opset"] = args.opset
    if not args.int8:
        to_file(predictor.model, args.output, **options)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = os.path.join(folder, "model" + _SUFFIXES[args.format])
        to_file(predictor.model, whole, **options)
        quantize(whole, images, args.output)


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    try:
        check_arguments(args)
        cfg = load_config(args.config_file, args.opts)
        cfg.MODEL.DEVICE = "cpu"
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: name a trained model, --opts MODEL.WEIGHTS F")
        if model_node(cfg) == "EMBEDMASK" and not args.size:
            raise ValueError("--size is missing: EmbedMask is exported for images of one size")
        calibration = find_images([args.calibration]) if args.int8 else []
        images = [read_image(name, format="BGR") for name in args.check]
        predictor = Predictor(cfg)
        export(args, predictor, calibration)
        files = [args.output]
        if args.format == "openvino":
            files.append(args.output.removesuffix(".xml") + ".bin")
        print(f"{args.output}: {sum(map(os.path.getsize, files)) / 1e6:.1f} MB")
        if not images:
            return 0
        comparison = compare(predictor, RuntimePredictor(args.output), images, args.int8)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        parser.error(str(error))
    print(comparison.report())
    share, iou = _LEAST_INT8 if args.int8 else _LEAST
    if comparison.agrees(share, iou):
        return 0
    print(
        f"the file and the model disagree: less than {share:.0%} of the detections are matched, or "
        f"the mask IoU (5th percentile) is below {iou}"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
