"""Backbones of Detectron2 and timm under the models of this project."""

import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, MViT, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from small_models import tiny_embedmask, tiny_yolact, training_input

from yolact_d2.modeling import TimmBackbone

BOXES = [[4, 6, 60, 70], [40, 20, 90, 88]]


@BACKBONE_REGISTRY.register()
def small_regnet(cfg, input_shape):
    return RegNet(
        stem_class=SimpleStem,
        stem_width=32,
        block_class=ResBottleneckBlock,
        depth=13,
        w_a=36.44,
        w_0=24,
        w_m=2.49,
        group_width=8,
        norm="BN",
        out_features=["s2", "s3", "s4"],
    )


@BACKBONE_REGISTRY.register()
def small_swin(cfg, input_shape):
    return SwinTransformer(
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=3,
        drop_path_rate=0.0,
        out_indices=(1, 2, 3),
    )


@BACKBONE_REGISTRY.register()
def small_mvit(cfg, input_shape):
    return MViT(
        img_size=96,
        embed_dim=8,
        depth=4,
        last_block_indexes=(0, 1, 2, 3),
        out_features=("scale3", "scale4", "scale5"),
    )


@BACKBONE_REGISTRY.register()
def small_vitdet(cfg, input_shape):
    """A pyramid without YOLACT's FPN."""
    return SimpleFeaturePyramid(
        ViT(
            img_size=96,
            patch_size=16,
            embed_dim=8,
            depth=1,
            num_heads=1,
            out_feature="last_feat",
            drop_path_rate=0.0,
        ),
        "last_feat",
        16,
        scale_factors=(2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
    )


@pytest.mark.parametrize(
    "name, features",
    [
        ("small_regnet", ["s2", "s3", "s4"]),
        ("small_swin", ["p1", "p2", "p3"]),
        ("small_mvit", ["scale3", "scale4", "scale5"]),
        ("small_vitdet", None),
    ],
)
def test_backbones_of_detectron2_train_and_detect(name, features):
    if features:
        opts = {
            "MODEL__BACKBONE__NAME": "build_yolact_fpn_backbone",
            "MODEL__FPN__BOTTOM_UP": name,
            "MODEL__FPN__IN_FEATURES": features,
        }
    else:
        opts = {
            "MODEL__BACKBONE__NAME": name,
            "MODEL__YOLACT__IN_FEATURES": ["p3", "p4", "p5", "p6"],
            "MODEL__ANCHOR_GENERATOR__SIZES": [[24], [48], [64], [96]],
        }
    model = tiny_yolact(size=96, **opts)
    assert_gradients_are_right(model, training_input(BOXES, 96, 96))
    (output,) = model.eval()([training_input([], 70, 110)])
    assert len(output["instances"]) == 100 and output["instances"].pred_masks.any()


def assert_gradients_are_right(model, *inputs):
    """A small step along the gradient lowers the loss as much as the gradient says."""

    def loss():
        torch.manual_seed(0)
        return sum(model.train()([*inputs]).values())

    before = loss()
    before.backward()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
    step = 1e-3 * before.item() / norm.item() ** 2
    with torch.no_grad():
        for parameter in parameters.values():
            parameter -= step * parameter.grad
    assert (before - loss()).item() == pytest.approx(1e-3 * before.item(), rel=0.3)


TIMM = {
    "MODEL__BACKBONE__FREEZE_AT": 0,
    "MODEL__FPN__BOTTOM_UP": "build_timm_backbone",
    "MODEL__TIMM__NAME": "test_convnext",
}


def timm_yolact(**opts):
    return tiny_yolact(
        MODEL__BACKBONE__NAME="build_yolact_fpn_backbone", size=96, **{**TIMM, **opts}
    )


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_feature_maps_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    size = 224 if "224" in name else 96
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    whole = timm.create_model(name, features_only=True).eval()
    whole.load_state_dict(backbone.net.state_dict())
    image = torch.rand(1, 3, size, size)
    got = backbone(image)
    for key, expected in zip(reversed(got), reversed(whole(image))):
        channels, stride = (
            backbone.output_shape()[key].channels,
            backbone.output_shape()[key].stride,
        )
        if expected.shape[1] != channels:  # channels last
            expected = expected.permute(0, 3, 1, 2)
        assert got[key].shape == (1, channels, size // stride, size // stride)
        torch.testing.assert_close(got[key], expected)
    assert list(got)[-3:] == ["res3", "res4", "res5"]


def test_timm_trains_under_both_architectures():
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    assert_gradients_are_right(timm_yolact(), training_input(BOXES, 96, 96))
    embedmask = tiny_embedmask(
        MODEL__BACKBONE__NAME="build_fcos_fpn_backbone",
        **{
            **TIMM,
            "MODEL__ANCHOR_GENERATOR__SIZES": [[8], [16], [32], [64], [128]],
            "MODEL__EMBEDMASK__IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "MODEL__EMBEDMASK__SIZES_OF_INTEREST": [64, 128, 256, 512],
        },
    )
    assert_gradients_are_right(embedmask, training_input(BOXES, 96, 96))


@pytest.mark.slow
def test_timm_exports(tmp_path):
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    pytest.importorskip("onnxruntime", reason="needs pip install 'yolact_d2[onnx]'")
    from yolact_d2.export import export_onnx
    from yolact_runtime import Predictor

    model, path = timm_yolact().eval(), str(tmp_path / "m.onnx")
    export_onnx(model, path)
    image = np.random.RandomState(0).randint(0, 255, (70, 90, 3), np.uint8)
    got = Predictor(path)(image)
    rgb = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
    expected = model([{"image": rgb}])[0]["instances"]
    assert len(got.scores) == len(expected) == 100
    np.testing.assert_allclose(got.scores, expected.scores.detach(), atol=1e-4)
    np.testing.assert_allclose(got.boxes, expected.pred_boxes.tensor.detach(), atol=0.05)


def test_wrong_backbones_are_named(monkeypatch):
    with pytest.raises(ValueError, match="MODEL.FPN.BOTTOM_UP is 'build_nothing'.*build_timm"):
        timm_yolact(MODEL__FPN__BOTTOM_UP="build_nothing")
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    with pytest.raises(ValueError, match="MODEL.TIMM.NAME is 'convnext_tinny'.*convnext_tiny"):
        timm_yolact(MODEL__TIMM__NAME="convnext_tinny")
    with pytest.raises(ValueError, match="FREEZE_AT is 2"):
        timm_yolact(MODEL__BACKBONE__FREEZE_AT=2)
    with pytest.raises(ValueError, match=r"no stage \['res3'.*TimmBackbone gives \['res4'\]"):
        timm_yolact(MODEL__TIMM__NAME="vit_tiny_patch16_224")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'yolact_d2\[timm\]'"):
        timm_yolact()
