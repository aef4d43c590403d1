"""Exported YOLACT and EmbedMask models, without PyTorch and Detectron2.

It needs numpy, and onnxruntime for .onnx files or openvino for .xml files; to read and write image
files, opencv-python. See docs/deployment.md.
"""

from .predictor import Detections, Predictor

__all__ = ["Detections", "Predictor"]
