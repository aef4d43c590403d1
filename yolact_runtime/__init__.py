"""Exported YOLACT and EmbedMask models, without PyTorch and Detectron2.

It needs numpy, and onnxruntime for .onnx files or openvino for .xml files. With OpenCV
it reads more image formats and writes labels. See docs/deployment.md.
"""

from .predictor import Detections, Predictor

__all__ = ["Detections", "Predictor"]
