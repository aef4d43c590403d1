"""Exported files compute what the model does, with other engines."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from processes import REPO
from small_models import tiny_embedmask, tiny_yolact

from tools.benchmark.exported import parse_exported
from tools.export_model import compare, match
from yolact_d2.export import export_onnx, export_openvino, export_program, quantize
from yolact_runtime import Predictor

pytest.importorskip("onnxruntime", reason="needs pip install 'yolact_d2[onnx]'")
pytest.importorskip("onnxscript", reason="needs pip install 'yolact_d2[onnx]'")

METADATA = Metadata(
    thing_classes=["a", "b", "ç", "d"],
    thing_dataset_id_to_contiguous_id={7: 0, 5: 1, 3: 2, 1: 3},
)


class Eager:
    """A model, called as a `Predictor` is."""

    def __init__(self, model):
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, image):
        channels = image if self.model.input_format == "BGR" else image[:, :, ::-1]
        tensor = torch.from_numpy(channels.transpose(2, 0, 1).copy())
        return self.model([{"image": tensor}])[0]["instances"]


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_equal(model, path, pictures):
    result = compare(Eager(model), Predictor(str(path)), pictures, int8=False)
    assert result.num_matched == result.num_detections == result.num_found > 20
    assert min(result.mask_ious) > 0.99 and np.mean(result.mask_ious) > 0.9999


@pytest.fixture(scope="module")
def plus():
    return tiny_yolact("yolact_plus_shapes")


@pytest.fixture(scope="module")
def plus_onnx(plus, tmp_path_factory):
    path = tmp_path_factory.mktemp("plus") / "plus.onnx"
    export_onnx(plus, str(path), metadata=METADATA)
    return path


@pytest.mark.slow
def test_onnx_equals_the_model(plus, plus_onnx):
    """NMS, deformable convolutions and mask scores are in the file."""
    assert [x.name for x in plus_onnx.parent.iterdir()] == ["plus.onnx"]
    pictures = images((50, 70), (64, 64), (90, 40))
    assert_equal(plus, plus_onnx, pictures)
    runtime, eager = Predictor(str(plus_onnx), threads=1), Eager(plus)
    assert runtime.class_names == ["a", "b", "ç", "d"] and runtime.category_ids == [7, 5, 3, 1]
    found, expected = runtime(pictures[0]), eager(pictures[0])
    pairs = match(expected, found, int8=False)
    scores = np.array([found.mask_scores[j] for _, j in pairs])
    np.testing.assert_allclose(scores, expected.mask_scores[[i for i, _ in pairs]], atol=1e-4)
    assert len(runtime(pictures[0], score_threshold=0.5).scores) == (found.scores >= 0.5).sum()


@pytest.mark.slow
def test_onnx_takes_batches(plus, plus_onnx):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(plus_onnx))
    batch = np.concatenate([image[None] for image in images((50, 70), (50, 70), (50, 70))])
    together = session.run(None, {"image": batch})
    for i in range(3):
        alone = session.run(None, {"image": batch[i : i + 1]})
        np.testing.assert_allclose(together[1][i], alone[1][0], atol=1e-5)
        assert together[-1].shape == (3, 100, 16, 16)


@pytest.mark.slow
def test_embedmask_onnx_equals_the_model(tmp_path):
    model = tiny_embedmask(MODEL__EMBEDMASK__INIT_MARGIN=1.0)
    export_onnx(model, str(tmp_path / "m.onnx"), image="float", size=(64, 96))
    # The model pads all of them to 64 x 96, which group norm sees.
    assert_equal(model, tmp_path / "m.onnx", images((64, 96), (64, 70), (128, 150), (50, 73)))
    runtime = Predictor(str(tmp_path / "m.onnx"))
    inputs, resized = runtime.prepare(np.full((32, 32, 3), 200, np.uint8))
    array = inputs["image"]
    assert resized == (64, 64) and (array[0, :, :, :64] == 200).all()
    means = np.broadcast_to(model.pixel_mean.numpy(), (3, 64, 32))
    np.testing.assert_allclose(array[0, :, :, 64:], means)


@pytest.mark.slow
def test_models_with_a_backbone_of_timm(tmp_path):
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    model = tiny_yolact(
        size=110,
        MODEL__BACKBONE__NAME="build_yolact_fpn_backbone",
        MODEL__FPN__BOTTOM_UP="build_timm_backbone",
        MODEL__TIMM__NAME="test_convnext",
    )
    export_onnx(model, str(tmp_path / "m.onnx"))
    assert_equal(model, tmp_path / "m.onnx", images((70, 90), (64, 64)))


@pytest.mark.slow
def test_program_equals_the_graph(tmp_path):
    model = tiny_yolact()
    export_program(model, str(tmp_path / "m.pt2"), outputs="full")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["outputs"] == "full"
    for picture in images((50, 70), (90, 40)):
        outputs = program(torch.from_numpy(picture[:, :, ::-1].copy())[None])
        expected = Eager(model)(picture)
        torch.testing.assert_close(outputs[1][0], expected.scores, rtol=0, atol=1e-5)
        assert outputs[3].shape == (1, 100, *picture.shape[:2])


@pytest.mark.slow
def test_openvino_equals_the_model(plus, tmp_path):
    pytest.importorskip("openvino", reason="needs pip install 'yolact_d2[openvino]'")
    export_openvino(plus, str(tmp_path / "m.xml"), metadata=METADATA)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    assert_equal(plus, tmp_path / "m.xml", images((50, 70), (64, 64), (90, 40)))
    assert Predictor(str(tmp_path / "m.xml")).class_names == ["a", "b", "ç", "d"]


@pytest.mark.slow
def test_int8_keeps_what_follows_the_networks_in_float(plus, plus_onnx, tmp_path):
    pytest.importorskip("nncf", reason="needs pip install 'yolact_d2[int8]'")
    import onnx

    with pytest.raises(ValueError, match="images is empty"):
        quantize(str(plus_onnx), [], str(tmp_path / "x.onnx"))
    with pytest.raises(ValueError, match="different endings"):
        quantize(str(plus_onnx), images((50, 70)), str(tmp_path / "x.xml"))
    with pytest.warns(UserWarning, match="2 images for calibration are few"):
        quantize(str(plus_onnx), images((50, 70), (64, 64)), str(tmp_path / "x.onnx"))
    assert (tmp_path / "x.onnx").stat().st_size < 0.6 * plus_onnx.stat().st_size
    graph = onnx.load(tmp_path / "x.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = [n.op_type for n in graph.node for x in n.input if x in makers]
    kinds = {
        n.op_type
        for n in graph.node
        if any(makers[x].op_type == "DequantizeLinear" for x in n.input if x in makers)
    }
    assert "Conv" in kinds and not kinds & {"MatMul", "Softmax", "TopK", "Exp"} and readers
    found = Predictor(str(tmp_path / "x.onnx"))(images((50, 70))[0])
    assert len(found.scores) == 100


@pytest.mark.slow
def test_runtime_needs_neither_torch_nor_detectron2_nor_opencv(plus, plus_onnx, tmp_path):
    import cv2

    (picture,) = images((50, 70))
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    program = (
        "import sys, runpy\n"
        "for name in ('torch', 'detectron2', 'cv2', 'yolact_d2'): sys.modules[name] = None\n"
        f"sys.argv = ['yolact_runtime', {str(plus_onnx)!r}, {str(tmp_path / 'a.png')!r}, "
        f"'--output', {str(tmp_path / 'drawn.png')!r}, '--confidence-threshold', '0']\n"
        "runpy.run_module('yolact_runtime', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Predictor(str(plus_onnx))(picture)
    lines = done.stdout.splitlines()
    assert len(lines) == len(found.scores)
    assert [line.split()[1] for line in lines] == [f"{score:.3f}" for score in found.scores]
    drawn = cv2.imread(str(tmp_path / "drawn.png"))
    assert drawn.shape == picture.shape
    untouched = ~found.masks.any(axis=0)
    assert (drawn != picture).any() and (drawn[~untouched] != picture[~untouched]).any()


@pytest.mark.slow
def test_benchmark_measures_files(plus_onnx):
    detector = parse_exported(["file", str(plus_onnx)])()
    pictures = images((50, 70), (90, 40))
    assert detector.count(pictures) == [100, 100] and detector.time(pictures) > 0
    ticks = iter(range(100))
    stages = detector.time_stages(pictures[:1], now=lambda: next(ticks))
    assert stages == {"masks": 5, "preprocess": 1, "heads": 1}
    for words, message in (
        (["file"], "LABEL FILE"),
        (["file", str(plus_onnx), "fp8"], "LABEL FILE"),
        (["file", "missing.onnx"], "missing.onnx"),
        (["file", str(plus_onnx), "bf16"], "OpenVINO"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_exported(words)


def test_wrong_arguments_are_named_and_leave_no_file(plus, tmp_path):
    path = str(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="opset is 18: .* need 19"):
        export_onnx(plus, path, opset=18)
    with pytest.raises(ValueError, match="cannot write"):
        export_onnx(plus, str(tmp_path))
    with pytest.raises(ValueError, match="not one of"):
        export_onnx(plus, path, outputs="mask")
    assert not list(tmp_path.iterdir())
