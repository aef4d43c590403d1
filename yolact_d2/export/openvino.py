import os
import tempfile
from typing import Any

import numpy as np

from ..files import check_writable
from ..modeling.instance_detector import InstanceDetector
from .onnx import export_onnx


def export_openvino(model: InstanceDetector, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a model in OpenVINO's format: `path`, which ends in .xml, and the weights beside it in
    a file that ends in .bin.

    Args:
        options: of :func:`export_onnx`.

    Raises:
        ImportError: if the packages of yolact_d2[onnx] or yolact_d2[openvino] are missing.
        TypeError, ValueError: see :func:`export_onnx`.
    """
    try:
        import onnx
        import openvino
        from openvino.frontend.onnx import ConversionExtension
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'yolact_d2[openvino]'") from error
    path = os.fspath(path)
    check_xml_path(path)
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = os.path.join(folder, "model.onnx")
        export_onnx(model, onnx_path, **options)
        # OpenVINO has deformable convolutions, but does not read those of ONNX.
        extension = ConversionExtension("DeformConv", _deformable_convolution)
        converted = openvino.convert_model(onnx_path, extension=extension)
        for x in onnx.load(onnx_path).metadata_props:
            converted.set_rt_info(x.value, ["yolact_d2", x.key])
        save_ir(converted, path)


def check_xml_path(path: str) -> None:
    """
    Raises:
        ValueError: if `path` does not end in .xml or cannot be written.
    """
    if not path.endswith(".xml"):
        raise ValueError(f"{path!r} does not end in .xml")
    check_writable(path)


def save_ir(model: Any, path: str) -> None:
    """Write an OpenVINO model. If it cannot be converted, both files stay as they were."""
    import openvino

    folder, name = os.path.split(path)
    stem = name.removesuffix(".xml")
    with tempfile.TemporaryDirectory(dir=folder or ".") as partial:
        openvino.save_model(model, os.path.join(partial, name), compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            os.replace(os.path.join(partial, stem + suffix), os.path.join(folder, stem + suffix))


def _deformable_convolution(node: Any) -> list[Any]:
    """ONNX's DeformConv in OpenVINO's operators."""
    from openvino import opset8

    image, weight, offset, bias, mask = (node.get_input(i) for i in range(5))
    pads = list(node.get_attribute("pads"))
    output = opset8.deformable_convolution(
        image,
        offset,
        weight,
        strides=list(node.get_attribute("strides")),
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=list(node.get_attribute("dilations")),
        mask=mask,
        auto_pad="EXPLICIT",
        group=node.get_attribute("group"),
        deformable_group=node.get_attribute("offset_group"),
        bilinear_interpolation_pad=True,
    )
    bias = opset8.unsqueeze(bias, opset8.constant(np.array([0, 2, 3])))
    return opset8.add(output, bias).outputs()
