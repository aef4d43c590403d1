"""Find objects in an image with an exported model, and draw them.

python -m yolact_runtime model.onnx image.jpg --output drawn.png
"""

import argparse
import os
import sys

from .drawing import draw
from .images import read_image, write_image
from .predictor import Predictor


def main() -> int:
    parser = argparse.ArgumentParser(prog="yolact_runtime", description=__doc__)
    parser.add_argument("model", help="an .onnx file, or an OpenVINO .xml file")
    parser.add_argument("image")
    parser.add_argument("--output", help="draw the objects, a .png or .jpg file")
    parser.add_argument("--confidence-threshold", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=0, help="0: the engine's choice")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 (OpenVINO)")
    args = parser.parse_args()
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold is {args.confidence_threshold}, not in 0..1")
    if args.threads < 0:
        parser.error(f"--threads is {args.threads}, less than 0")
    if args.output and not args.output.lower().endswith((".png", ".jpg", ".jpeg")):
        parser.error(f"--output {args.output} ends neither in .png nor in .jpg")
    if args.output and not os.path.isdir(os.path.dirname(args.output) or "."):
        parser.error(f"--output {args.output}: there is no such folder")
    try:
        predictor = Predictor(args.model, threads=args.threads, bf16=args.bf16)
        image = read_image(args.image)
        found = predictor(image, args.confidence_threshold)
        if args.output:
            write_image(args.output, draw(image, found, predictor.class_names))
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    for box, score, number in zip(found.boxes, found.scores, found.classes):
        name = predictor.class_names[number] if predictor.class_names else f"class {number}"
        print(f"{name:20} {score:.3f}  box " + " ".join(f"{side:.1f}" for side in box))
    return 0


if __name__ == "__main__":
    sys.exit(main())
