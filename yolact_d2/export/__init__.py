"""Models for other runtimes. What the files compute and contain: docs/deployment.md."""

from .onnx import export_onnx
from .openvino import export_openvino
from .program import export_program
from .quantization import quantize

__all__ = ["export_onnx", "export_openvino", "export_program", "quantize"]
