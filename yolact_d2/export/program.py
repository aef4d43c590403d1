import json
import os

import torch
from detectron2.data.catalog import Metadata

from ..files import atomic_write, check_writable
from ..modeling.instance_detector import InstanceDetector
from .graph import build_graph
from .metadata import describe_graph


def export_program(
    model: InstanceDetector,
    path: str | os.PathLike[str],
    *,
    outputs: str = "masks",
    image: str = "uint8",
    size: tuple[int, int] | None = None,
    metadata: Metadata | None = None,
) -> None:
    """Write a model as a ``torch.export`` program (.pt2), for ``torch.export.load``.

    YOLACT++ and EmbedMask need ``import torchvision`` before they are loaded.

    Args, raises: as :func:`export_onnx`. The metadata is the extra file "metadata.json".
    """
    path = os.fspath(path)
    check_writable(path)
    graph = build_graph(model, outputs, image, size)
    extra = {"metadata.json": json.dumps(describe_graph(graph, metadata))}
    program = torch.export.export(
        graph, tuple(graph.inputs.values()), dynamic_shapes=graph.dynamic_shapes
    )
    with atomic_write(path) as partial:
        torch.export.save(program, partial, extra_files=extra)
