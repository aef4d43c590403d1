"""Exported files compute what the model does, with other engines."""

import json
import re
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
from yolact_d2.inference.inputs import to_model_input
from yolact_runtime import Detections, Predictor

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
        channels = to_model_input(image, self.model.input_format)
        tensor = torch.from_numpy(channels.transpose(2, 0, 1).copy())
        return self.model([{"image": tensor}])[0]["instances"]


def images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_equal(model, path, pictures):
    result = compare(Eager(model), Predictor(path), pictures, int8=False)
    assert result.num_matched == result.num_detections == result.num_found > 20
    assert min(result.mask_ious) > 0.99 and np.mean(result.mask_ious) > 0.9999


@pytest.fixture(scope="module")
def plus():
    return tiny_yolact("yolact_plus_shapes")


@pytest.fixture(scope="module")
def plus_onnx(plus, tmp_path_factory):
    path = tmp_path_factory.mktemp("plus") / "plus.onnx"
    export_onnx(plus, path, metadata=METADATA)
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
    assert together[-1].shape == (3, 100, 16, 16)
    for i in range(3):
        alone = session.run(None, {"image": batch[i : i + 1]})
        assert len(alone) == 5
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_embedmask_onnx_equals_the_model(tmp_path):
    model = tiny_embedmask(MODEL__EMBEDMASK__INIT_MARGIN=1.0)
    export_onnx(model, tmp_path / "m.onnx", image="float", size=(64, 96))
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
@pytest.mark.parametrize(
    "outputs, image, opts",
    [
        ("masks", "float", {}),
        (
            "masks",
            "uint8",
            {"config": "yolact_modern_shapes", "MODEL__YOLACT__HEAD_CONV_DIM": 64},
        ),
        (
            "full",
            "uint8",
            {"INPUT__FORMAT": "L", "MODEL__PIXEL_MEAN": [99.0], "MODEL__PIXEL_STD": [50.0]},
        ),
    ],
)
def test_other_files_equal_the_model(outputs, image, opts, tmp_path):
    model = tiny_yolact(**opts)
    with torch.no_grad():  # else many pixels of masks are at the threshold
        model.head.mask_coefficients.weight *= 10
    export_onnx(model, tmp_path / "m.onnx", outputs=outputs, image=image)
    assert_equal(model, tmp_path / "m.onnx", images((50, 70), (64, 64), (90, 40)))


@pytest.mark.slow
def test_program_equals_the_model(tmp_path):
    model = tiny_yolact()
    export_program(model, tmp_path / "m.pt2", outputs="full")
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["outputs"] == "full"
    for picture in images((50, 70), (90, 40)):
        outputs = program(torch.from_numpy(picture[:, :, ::-1].copy())[None])
        expected = Eager(model)(picture)
        found = Detections(*(x[0].numpy() for x in outputs))
        pairs = match(expected, found, int8=False)
        assert len(pairs) == len(expected) == 100 and found.masks.shape[1:] == picture.shape[:2]
        for i, j in pairs:
            assert (expected.pred_masks[i].numpy() != found.masks[j]).mean() < 1e-3


@pytest.mark.slow
def test_openvino_equals_the_model(plus, tmp_path):
    pytest.importorskip("openvino", reason="needs pip install 'yolact_d2[openvino]'")
    export_openvino(plus, tmp_path / "m.xml", metadata=METADATA)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    pictures = images((50, 70), (64, 64), (90, 40))
    assert_equal(plus, tmp_path / "m.xml", pictures)
    runtime = Predictor(tmp_path / "m.xml")
    assert runtime.class_names == ["a", "b", "ç", "d"] and runtime.category_ids == [7, 5, 3, 1]

    result = compare(Eager(plus), Predictor(tmp_path / "m.xml", bf16=True), pictures, int8=True)
    assert result.agrees(0.9, 0.8), result.report()
    pytest.importorskip("nncf", reason="needs pip install 'yolact_d2[int8]'")
    quantize(tmp_path / "m.xml", images(*[(64, 64)] * 8), tmp_path / "q.xml")
    result = compare(Eager(plus), Predictor(tmp_path / "q.xml"), pictures, int8=True)
    assert result.agrees(0.8, 0.5), result.report()


@pytest.mark.slow
def test_int8_keeps_what_follows_the_networks_in_float(plus, plus_onnx, tmp_path):
    pytest.importorskip("nncf", reason="needs pip install 'yolact_d2[int8]'")
    import onnx

    for empty in ([], np.zeros((0, 9, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="images is empty"):
            quantize(plus_onnx, empty, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="images is the path 'folder'"):
        quantize(plus_onnx, "folder", tmp_path / "x.onnx")
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
def test_runtime_needs_neither_torch_nor_detectron2(plus, plus_onnx, tmp_path):
    """Nor OpenCV for arrays."""
    import cv2

    (picture,) = images((50, 70))
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    program = (
        "import sys, runpy\n"
        "for name in ('torch', 'detectron2', 'cv2', 'yolact_d2'): sys.modules[name] = None\n"
        "import numpy, yolact_runtime\n"
        f"predictor = yolact_runtime.Predictor({str(plus_onnx)!r})\n"
        "print(len(predictor(numpy.zeros((50, 70, 3), numpy.uint8)).scores))\n"
        "del sys.modules['cv2']\n"
        f"sys.argv = ['yolact_runtime', {str(plus_onnx)!r}, {str(tmp_path / 'a.png')!r}, "
        f"'--output', {str(tmp_path / 'drawn.png')!r}, '--confidence-threshold', '0']\n"
        "runpy.run_module('yolact_runtime', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Predictor(str(plus_onnx))(picture)
    count, *lines = done.stdout.splitlines()
    assert int(count) == len(found.scores) == 100
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


@pytest.mark.slow
def test_files_that_cannot_be_used_are_named(plus_onnx, tmp_path, monkeypatch):
    import onnx

    proto = onnx.load(plus_onnx)
    kept = [x for x in proto.metadata_props if x.key != "pixel_mean"]
    for name, properties in (("incomplete", kept), ("other", [])):
        del proto.metadata_props[:]
        proto.metadata_props.extend(properties)
        onnx.save(proto, tmp_path / f"{name}.onnx")
    (tmp_path / "damaged.onnx").write_bytes(plus_onnx.read_bytes()[:1000])
    (tmp_path / "damaged.xml").write_text("<net")
    for name, message in (
        ("incomplete.onnx", "lacks 'pixel_mean' in its metadata"),
        ("other.onnx", "was not exported by yolact_d2"),
        ("damaged.onnx", "cannot be loaded"),
        ("damaged.xml", "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(repr(str(tmp_path / name)))} {message}"):
            Predictor(tmp_path / name)
    for package, name in (("onnxruntime", "other.onnx"), ("openvino", "damaged.xml")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            Predictor(tmp_path / name)


@pytest.mark.slow
def test_opsets_that_pytorch_cannot_write_are_refused(tmp_path):
    with pytest.raises(ValueError, match="opset is 0, but PyTorch wrote 18"):
        export_onnx(tiny_yolact(), tmp_path / "m.onnx", opset=0)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_named_and_leave_no_file(plus, tmp_path):
    path = tmp_path / "m.onnx"
    for metadata, message in (
        (Metadata(thing_classes=["a"]), "1 class names, but the model has 4 classes"),
        (Metadata(thing_dataset_id_to_contiguous_id={1: 0, 2: 1}), "2 category ids, .* 4 classes"),
    ):
        for export in (export_onnx, export_program):
            with pytest.raises(ValueError, match=message):
                export(plus, path, metadata=metadata)
        with pytest.raises(ValueError, match=message):
            export_onnx(tiny_embedmask(), path, image="float", size=(64, 64), metadata=metadata)
    with pytest.raises(ValueError, match="opset is 18: .* need 19"):
        export_onnx(plus, path, opset=18)
    with pytest.raises(ValueError, match="cannot write"):
        export_onnx(plus, tmp_path)
    with pytest.raises(ValueError, match="not one of"):
        export_onnx(plus, path, outputs="mask")
    assert not list(tmp_path.iterdir())
