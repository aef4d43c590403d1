import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yolact_runtime import Predictor
from yolact_runtime.images import read_image

from ..files import atomic_write, check_writable
from .openvino import check_xml_path, save_ir

_ENOUGH_IMAGES, _MAX_IMAGES = 8, 300  # the latter is the default of NNCF
# By operator set: ONNX, OpenVINO.
_CONVOLUTIONS = ("Conv", "DeformConv", "Convolution", "DeformableConvolution")


def quantize(
    path: str | os.PathLike[str],
    images: Sequence[np.ndarray | str | os.PathLike[str]],
    output: str | os.PathLike[str],
) -> None:
    """Convert the networks of an exported file to int8; what follows them stays in float32.

    Activation ranges are measured on `images`. Use real ones: random noise gives wrong ranges and
    lowers accuracy.

    Args:
        path: an .onnx or .xml file, with the outputs "masks" or "full".
        images: 8 or more images of the kind that the model will see, files or (H, W, 3) uint8, BGR.
            The first 300 are used; files are read one at a time.
        output: the file to write, with the same ending.

    Raises:
        ImportError: if nncf, or onnxruntime or openvino for such a file, is missing.
        OSError, ValueError: naming the file or argument that is wrong.
    """
    try:
        import nncf
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'yolact_d2[int8]'") from error
    path, output = os.fspath(path), os.fspath(output)
    if isinstance(images, (str, os.PathLike)):
        raise ValueError(f"images is the path {os.fspath(images)!r}, not a list of images")
    if len(images) == 0:
        raise ValueError("images is empty: int8 needs real images for calibration, 8 or more")
    if len(images) < _ENOUGH_IMAGES:
        warnings.warn(f"{len(images)} images for calibration are few: use 8 or more", stacklevel=2)
    is_onnx = path.endswith(".onnx")
    if is_onnx != output.endswith(".onnx"):
        raise ValueError(f"{output!r} and {path!r} have different endings")
    check_writable(output) if is_onnx else check_xml_path(output)
    predictor = Predictor(path)

    def prepare(image: np.ndarray | str | os.PathLike[str]) -> dict[str, np.ndarray]:
        array = image if isinstance(image, np.ndarray) else read_image(image)
        return predictor.prepare(array)[0]

    model, nodes = _read_onnx(path) if is_onnx else _read_openvino(path)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(images, prepare),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=min(len(images), _MAX_IMAGES),
        ignored_scope=nncf.IgnoredScope(names=after_networks(nodes)),
    )
    if is_onnx:
        import onnx

        with atomic_write(output) as partial:
            onnx.save(quantized, partial)
    else:
        save_ir(quantized, output)


def after_networks(nodes: Mapping[str, tuple[str, Sequence[str]]]) -> list[str]:
    """The nodes of a graph that no convolution before NMS needs.

    Args:
        nodes: operator and names of the inputs of each node, inputs first.
    """
    after_nms: set[str] = set()
    for name, (operator, inputs) in nodes.items():
        if operator == "TopK" or after_nms.intersection(inputs):
            after_nms.add(name)
    needed: set[str] = set()
    for name, (operator, inputs) in reversed(list(nodes.items())):
        if name in needed or (operator in _CONVOLUTIONS and name not in after_nms):
            needed.update((name, *inputs))
    return [name for name, (operator, _) in nodes.items() if name not in needed]


def _read_onnx(path: str) -> tuple[Any, dict[str, tuple[str, list[str]]]]:
    import onnx

    model = onnx.load(path)
    makers = {output: node.name for node in model.graph.node for output in node.output}
    return model, {
        node.name: (node.op_type, [makers[x] for x in node.input if x in makers])
        for node in model.graph.node
    }


def _read_openvino(path: str) -> tuple[Any, dict[str, tuple[str, list[str]]]]:
    import openvino

    model = openvino.Core().read_model(path)
    return model, {
        node.get_friendly_name(): (
            node.get_type_name(),
            [x.get_node().get_friendly_name() for x in node.input_values()],
        )
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Result")
    }
