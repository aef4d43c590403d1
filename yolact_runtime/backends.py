"""Inference engines: a file becomes a function of arrays, and its metadata."""

import os
from collections.abc import Callable

import numpy as np

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def open_model(
    path: str | os.PathLike[str], threads: int = 0, bf16: bool = False
) -> tuple[Run, dict[str, str]]:
    """
    Args:
        path: an ".onnx" file, or an OpenVINO ".xml" file with its ".bin" beside it.
        threads: number of threads, 0 for the engine's choice.
        bf16: let OpenVINO compute in bfloat16.

    Returns:
        a function from the inputs to the outputs, by name; the metadata of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: naming the package that is missing.
        ValueError: if it ends otherwise or cannot be loaded, or if bf16 is asked of ONNX Runtime.
    """
    path = os.fspath(path)
    with open(path, "rb"):
        pass
    is_onnx = path.endswith(".onnx")
    if not is_onnx and not path.endswith(".xml"):
        raise ValueError(f"{path!r} ends neither in .onnx nor in .xml")
    if is_onnx and bf16:
        raise ValueError("onnxruntime does not compute in bfloat16 on a CPU: export to OpenVINO")
    try:
        return _open_onnx(path, threads) if is_onnx else _open_openvino(path, threads, bf16)
    except ImportError as error:
        package = "onnxruntime" if is_onnx else "openvino"
        raise ImportError(f"{path!r} needs {package}: pip install {package}") from error
    except Exception as error:  # of the engine's own kinds
        raise ValueError(f"{path!r} cannot be loaded: {error}") from error


def _open_onnx(path: str, threads: int) -> tuple[Run, dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, inputs)))

    return run, session.get_modelmeta().custom_metadata_map


def _open_openvino(path: str, threads: int, bf16: bool) -> tuple[Run, dict[str, str]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    # By itself OpenVINO computes in bfloat16 where the CPU can.
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = core.compile_model(model, "CPU", settings)
    names = [output.any_name for output in compiled.outputs]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = compiled(inputs)
        return {name: results[name] for name in names}

    metadata = {}
    if model.has_rt_info("yolact_d2"):
        values = model.get_rt_info("yolact_d2").value
        metadata = {key: str(value) for key, value in values.items()}
    return run, metadata
