"""The optimised copy of a model makes nearly the same predictions."""

import copy
import itertools

import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from fake_gpu import DEVICE, fake_gpu
from plain import CONFIGS, assert_equal
from small_models import random_image, tiny_embedmask, tiny_yolact
from torch import nn
from torch._inductor import config as inductor_config
from torch.utils._pytree import tree_leaves

from yolact_d2 import Predictor, load_config, optimization, optimize_for_inference
from yolact_d2.modeling.backbone.deform import ModulatedDeformConv2d
from yolact_d2.optimization import fast_dtype, fold_batch_norms


def randomize_(module):
    """Random batch norm, so that an error in its folding shows."""
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.mul_(torch.empty_like(layer.weight).uniform_(0.5, 1.5))
            layer.bias.data.normal_(std=0.2)
        if isinstance(layer, ModulatedDeformConv2d):
            nn.init.normal_(layer.conv_offset_mask.bias, std=0.3)


def random_model(name, *opts):
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *opts])
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    randomize_(model)
    return model


SMALL_DARKNET = (
    "INPUT.IMAGE_SIZE", 96, "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.YOLACT.NUM_CLASSES", 4
)  # fmt: skip
MODELS = {
    "YOLACT": ("yolact_shapes",),
    "YOLACT++": ("yolact_plus_shapes",),
    "frozen norm": ("yolact_shapes", "MODEL.RESNETS.NORM", "FrozenBN"),
    "group norm in the FPN": ("yolact_shapes", "MODEL.FPN.NORM", "GN"),
    "DarkNet": ("yolact_darknet53_FPN_550", *SMALL_DARKNET),
}


@pytest.fixture(scope="module")
def image():
    return np.random.RandomState(0).randint(0, 255, (90, 120, 3), dtype=np.uint8)


@torch.no_grad()
def predict(model, image):
    return model([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]["instances"]


def predict_raw(model, image):
    """The instances, and the outputs of head and protonet."""
    outputs = []
    hooks = [
        model.head.register_forward_hook(lambda m, x, out: outputs.extend(out)),
        model.protonet.register_forward_hook(lambda m, x, out: outputs.append(out)),
    ]
    instances = predict(model, image)
    for hook in hooks:
        hook.remove()
    return instances, outputs


@pytest.mark.parametrize("args", MODELS.values(), ids=MODELS.keys())
def test_outputs_are_equal_in_float32_and_close_in_bfloat16(args, image):
    model = random_model(*args)
    expected, expected_raw = predict_raw(model, image)

    fast = optimize_for_inference(model, dtype=torch.float32)
    instances, raw = predict_raw(fast, image)
    for a, b in zip(raw, expected_raw):
        assert (a - b).abs().max() < 1e-4 * b.abs().max()
    torch.testing.assert_close(instances.scores, expected.scores, rtol=1e-3, atol=1e-5)
    assert set(instances.get_fields()) == set(expected.get_fields())
    assert not any(isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in fast.modules())

    instances, raw = predict_raw(optimize_for_inference(model, dtype=torch.bfloat16), image)
    for a, b in zip(raw, expected_raw):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().mean() < 0.05 * b.abs().mean()
    for field in ("scores", "mask_scores"):
        if expected.has(field):
            assert instances.get(field).dtype == torch.float32
    assert instances.pred_boxes.tensor.dtype == torch.float32


def test_embedmask(image):
    """Coordinates and margins are float32 even if the network is not."""
    model = tiny_embedmask().eval()
    expected = predict(model, image)
    instances = predict(optimize_for_inference(model, dtype=torch.float32), image)
    torch.testing.assert_close(instances.scores, expected.scores, rtol=1e-3, atol=1e-5)
    outputs = []
    with torch.no_grad():  # what is left of the first two dimensions is the position
        model.head.pixel_spatial_embed_pred.weight.zero_()
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    fast.head.register_forward_hook(lambda m, x, out: outputs.append(out))
    torch.testing.assert_close(predict(fast, image).scores, expected.scores, rtol=0.1, atol=0.02)
    model.head.register_forward_hook(lambda m, x, out: outputs.append(out))
    predict(model, image)
    for a, b in zip(*outputs):
        assert a.dtype == torch.float32 and (a - b).abs().mean() < 0.05 * b.abs().mean()
    torch.testing.assert_close(outputs[0].pixels[:, :2], outputs[1].pixels[:, :2])


def test_original_model_is_not_changed(image):
    model = random_model("yolact_plus_shapes").train()
    before = copy.deepcopy(model.state_dict())
    fast = optimize_for_inference(model)
    predict(fast, image)
    assert model.training and not fast.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fast.parameters())
    assert_equal(model.state_dict(), before)


def test_copy_replaces_the_model_of_a_predictor(shapes_cfg, image):
    shapes_cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
    predictor = Predictor(shapes_cfg, confidence_threshold=0)
    expected = predictor(image)
    predictor.model = optimize_for_inference(predictor.model, dtype=torch.float32)
    instances = predictor(image)
    assert instances.image_size == expected.image_size and len(instances) == len(expected) > 0
    torch.testing.assert_close(instances.scores, expected.scores, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_folded_norm_gives_the_same_output():
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
    for norm, bias, deformable in itertools.product(norms, (True, False), (True, False)):
        torch.manual_seed(0)
        layer = Conv2d(3, 4, kernel_size=3, padding=1, bias=bias, norm=norm(4, eps=1e-2))
        layer = nn.Sequential(ModulatedDeformConv2d(layer) if deformable else layer).eval()
        randomize_(layer)
        x = torch.randn(2, 3, 6, 7)
        expected = layer(x)
        fold_batch_norms(layer)
        assert layer[0].norm is None
        torch.testing.assert_close(layer(x), expected)


def test_copy_can_be_copied_saved_converted_and_optimised_again(image, tmp_path):
    fast = optimize_for_inference(random_model("yolact_plus_shapes"), dtype=torch.bfloat16)
    expected = predict(fast, image).scores
    torch.save(fast, tmp_path / "fast.pth")
    for other in (
        copy.deepcopy(fast),
        torch.load(tmp_path / "fast.pth", weights_only=False),
        optimize_for_inference(fast, dtype=torch.bfloat16),
    ):
        assert torch.equal(predict(other, image).scores, expected)
    torch.testing.assert_close(predict(fast.float(), image).scores, expected, rtol=0.1, atol=0.02)


def test_other_models_are_errors():
    with pytest.raises(TypeError, match="YOLACT or EmbedMask of yolact_d2, got Linear"):
        optimize_for_inference(nn.Linear(2, 2))


def test_backbone_head_and_protonet_are_compiled_with_constants(monkeypatch, image):
    called = []

    def fake_compile(module, **options):
        def call(*args):
            called.append((type(module).__name__, inductor_config.freezing))
            return module.forward(*args)

        module._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", fake_compile)
    model = random_model("yolact_shapes")
    expected = predict(model, image).scores
    fast = optimize_for_inference(model, dtype=torch.float32, compile=True)
    torch.testing.assert_close(predict(fast, image).scores, expected, rtol=1e-3, atol=1e-5)
    assert called == [("YOLACTFPN", True), ("YOLACTHead", True), ("Protonet", True)]
    assert not inductor_config.freezing
    torch.testing.assert_close(predict(copy.deepcopy(fast), image).scores, expected)


def test_on_a_gpu_all_but_the_resize_of_masks_is_compiled(monkeypatch):
    called = []

    def fake_compile(function, **options):
        def call(*args):
            called.append((function.__name__, options))
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", fake_compile)
    inputs = [{"image": random_image(50, 70)}, {"image": random_image(64, 40)}]
    model = tiny_yolact().eval()
    expected = [x["instances"].scores for x in model(inputs)]
    with fake_gpu(), torch.no_grad():
        model = model.to(DEVICE)
        fast = optimize_for_inference(model, dtype=torch.float32, compile=True)
        for x, scores in zip(fast(inputs), expected):
            torch.testing.assert_close(x["instances"].scores.values, scores, rtol=1e-3, atol=1e-5)
        assert called == [("detect_batch", {"mode": "reduce-overhead", "dynamic": False})]
        copy.deepcopy(fast)(inputs)  # is not compiled, and does not call the original
        assert len(called) == 1


@torch.no_grad()
def test_the_detections_of_a_batch_are_one_graph():
    model = tiny_yolact("yolact_plus_shapes").eval()
    images = model.preprocess_image([{"image": random_image(50, 70)}] * 2)
    compiled = torch.compile(model.detect_batch, backend="eager", fullgraph=True)
    results = (tree_leaves(detect(images)) for detect in (compiled, model.detect_batch))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_fast_dtype(monkeypatch):
    for device, capabilities, expected in (
        ("cuda", {}, torch.float16),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False}, torch.float32),
        ("mps", {"avx512_bf16": True}, torch.float32),
    ):
        monkeypatch.setattr(
            optimization.torch.cpu, "get_capabilities", lambda x=capabilities: x, raising=False
        )
        assert fast_dtype(torch.device(device)) == expected
