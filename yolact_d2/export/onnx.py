import os

import torch
from detectron2.data.catalog import Metadata

from ..files import atomic_write, check_writable
from ..modeling.backbone.deform import ModulatedDeformConv2d
from ..modeling.instance_detector import InstanceDetector
from .graph import build_graph
from .metadata import describe_graph

_DEFAULT_OPSET = 20
_DEFORM_CONV_OPSET = 19


def export_onnx(
    model: InstanceDetector,
    path: str | os.PathLike[str],
    *,
    outputs: str = "masks",
    image: str = "uint8",
    opset: int | None = None,
    size: tuple[int, int] | None = None,
    metadata: Metadata | None = None,
) -> None:
    """Write a model as one ONNX file, NMS included.

    Args:
        model: with its weights loaded. It stays as it is.
        path: the file. It is written when the export has succeeded.
        outputs: "masks", "coefficients", "full" or "raw", see :class:`ModelGraph`.
        image: "uint8" or "float", see :class:`ModelGraph`.
        opset: version of ONNX's operators; None for 20. YOLACT++ needs 19 or more.
        size: (height, width) of EmbedMask's images, in pixels.
        metadata: class names and category ids, as in :attr:`Predictor.metadata`.

    Raises:
        ImportError: if the packages of yolact_d2[onnx] are missing.
        TypeError, ValueError: naming the argument that is wrong, before work starts; but only the
            export shows that PyTorch cannot write an opset.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx.export needs it
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'yolact_d2[onnx]'") from error
    path = os.fspath(path)
    check_writable(path)
    opset = _DEFAULT_OPSET if opset is None else opset
    deformable = any(isinstance(x, ModulatedDeformConv2d) for x in model.modules())
    if deformable and opset < _DEFORM_CONV_OPSET:
        raise ValueError(
            f"opset is {opset}: deformable convolutions (YOLACT++) need {_DEFORM_CONV_OPSET}"
        )
    graph = build_graph(model, outputs, image, size)
    properties = describe_graph(graph, metadata)
    program = torch.onnx.export(
        graph,
        tuple(graph.inputs.values()),
        dynamic_shapes=graph.dynamic_shapes,
        input_names=list(graph.inputs),
        output_names=graph.output_names,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    written = next(x.version for x in proto.opset_import if x.domain == "")
    if written != opset:
        raise ValueError(f"opset is {opset}, but PyTorch wrote {written}")
    onnx.helper.set_model_props(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    with atomic_write(path) as partial:
        onnx.save(proto, partial)
