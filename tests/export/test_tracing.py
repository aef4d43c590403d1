"""Detectron2's ``export_model.py --format torchscript`` gives the model's detections."""

import warnings

import pytest
import torch
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.structures import Boxes
from small_models import random_image, tiny_embedmask, tiny_yolact
from torch import Tensor

from tools.export_model import match
from yolact_runtime import Detections


@pytest.mark.parametrize("kind", ["yolact_shapes", "yolact_plus_shapes", "embedmask_shapes"])
def test_a_trace_holds_for_other_images_and_sizes(kind):
    if kind == "embedmask_shapes":
        model = tiny_embedmask(MODEL__EMBEDMASK__INIT_MARGIN=1.0)
    else:
        model = tiny_yolact(kind)
    model.eval()
    example = random_image(64, 96)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of decisions that become constants
        adapter = TracingAdapter(model, [{"image": example}])
        traced = torch.jit.trace(adapter, (example,), check_trace=False)
        for size in ((64, 96), (50, 70), (130, 80)):
            image = random_image(*size).flip(1)
            expected = model([{"image": image}])[0]["instances"]
            got = adapter.outputs_schema(traced(image))[0]["instances"]
            assert got.image_size.tolist() == [*size] and len(got) == len(expected) > 20
            arrays = (got.pred_boxes.tensor, got.scores, got.pred_classes, got.pred_masks)
            pairs = match(expected, Detections(*(x.numpy() for x in arrays)), int8=False)
            assert len(pairs) == len(expected)
            for i, j in pairs:
                assert (expected.pred_masks[i] != got.pred_masks[j]).float().mean() < 1e-3


@pytest.mark.parametrize("kind", ["yolact_plus_shapes", "embedmask_shapes"])
def test_scripted_models_are_those_of_detectron2s_scripting(kind):
    is_yolact = kind.startswith("yolact")
    model = (tiny_yolact if is_yolact else tiny_embedmask)(kind).eval()
    fields = {"pred_boxes": Boxes, "scores": Tensor, "pred_classes": Tensor, "pred_masks": Tensor}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        scripted = scripting_with_instances(model, fields)
        inputs = [{"image": random_image(*size)} for size in ((50, 70), (130, 80))]
        for x, got in zip(inputs, scripted(inputs)):
            expected = model([x])[0]["instances"]
            assert got.image_size == expected.image_size and len(expected) > 20
            boxes, masks = got.pred_boxes.tensor, got.pred_masks
            found = Detections(boxes.numpy(), got.scores.numpy(), got.pred_classes.numpy(), masks)
            pairs = match(expected, found, int8=False)
            assert len(pairs) == len(expected) == len(boxes)
            for i, j in pairs:
                assert (expected.pred_masks[i] != masks[j]).float().mean() < 1e-3
    assert not isinstance(model.backbone, torch.jit.ScriptModule)  # the model is as before


def test_what_cannot_be_traced_raises():
    model = tiny_yolact(MODEL__YOLACT__NMS="batched_nms").eval()
    image = random_image(64, 64)
    with pytest.raises(NotImplementedError, match="batched_nms: only fast_nms can be traced"):
        torch.jit.trace(TracingAdapter(model, [{"image": image}]), (image,), check_trace=False)


@pytest.mark.slow
def test_onnx_of_the_adapter_holds_for_other_images(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs yolact_d2[onnx]")
    pytest.importorskip("onnxscript", reason="needs yolact_d2[onnx]")
    model, image = tiny_yolact().eval(), random_image(50, 70)
    adapter = TracingAdapter(model, [{"image": image}])
    torch.onnx.export(adapter, (image,), str(tmp_path / "m.onnx"), verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    image = image.flip(2)
    (name,) = (x.name for x in session.get_inputs())
    boxes, classes, masks, scores, _ = session.run(None, {name: image.numpy()})
    with torch.no_grad():
        expected = model([{"image": image}])[0]["instances"]
    found = Detections(boxes, scores, classes, masks)
    assert len(match(expected, found, int8=False)) == len(expected) == 100
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session.run(None, {name: random_image(64, 64).numpy()})
