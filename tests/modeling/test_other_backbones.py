"""Backbones of Detectron2 and timm under the models of this project."""

import math
import sys

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, MViT, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.structures import Boxes
from plain import CONFIGS
from small_models import tiny_embedmask, tiny_yolact, training_input
from torch.nn import functional as F

from yolact_d2 import model_zoo
from yolact_d2.modeling import YOLACTFPN, TimmBackbone
from yolact_d2.modeling.backbone.batch_norm import batch_norms
from yolact_d2.modeling.backbone.fpn import LastLevelDownsample

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
    vit = ViT(img_size=96, patch_size=16, embed_dim=8, depth=1, num_heads=1, use_rel_pos=True)
    return SimpleFeaturePyramid(
        vit, "last_feat", 16, scale_factors=(2.0, 1.0, 0.5), top_block=LastLevelDownsample(16)
    )


@pytest.mark.parametrize(
    "name, features, size",
    [
        ("small_regnet", ["s2", "s3", "s4"], 110),
        ("small_swin", ["p1", "p2", "p3"], 110),
        ("small_mvit", ["scale3", "scale4", "scale5"], 110),
        ("small_vitdet", None, 96),
    ],
)
def test_backbones_of_detectron2_train_and_detect(name, features, size):
    opts = {"MODEL__BACKBONE__NAME": name}
    if features:
        opts = {
            "MODEL__BACKBONE__NAME": "build_yolact_fpn_backbone",
            "MODEL__FPN__BOTTOM_UP": name,
            "MODEL__FPN__IN_FEATURES": features,
        }
    model = tiny_yolact(size=size, **opts)
    assert_sizes_are_rounded_up(model.backbone, size)
    assert_gradients_are_right(model, training_input(BOXES, 96, 96))
    (output,) = model.eval()([training_input([], 70, 110)])
    assert len(output["instances"]) == 100 and output["instances"].pred_masks.any()


def assert_sizes_are_rounded_up(backbone, size):
    """As the anchors of the levels and YOLACT++'s mask re-scoring network expect."""
    features = backbone.eval()(torch.rand(1, 3, size, size))
    for name, shape in backbone.output_shape().items():
        side = math.ceil(size / shape.stride)
        assert features[name].shape == (1, shape.channels, side, side)


def test_vitdet_step_by_step():
    model = tiny_yolact(size=96, MODEL__BACKBONE__NAME="small_vitdet")
    with torch.no_grad():
        model.head.cls_score.weight /= 20  # else many scores are 1
    x = training_input(BOXES, 120, 100)
    image = F.interpolate(x["image"][None], size=(96, 96), mode="bilinear")
    image = (image - model.pixel_mean) / model.pixel_std

    vit = model.backbone.net
    patches = F.conv2d(image, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=16)
    # Without that of the class token, 14 x 14 positions become 6 x 6.
    positions = vit.pos_embed[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, size=(6, 6), mode="bicubic", align_corners=False)
    tokens = vit.blocks[0]((patches + positions).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    p3, p4, p5 = (stage(tokens) for stage in model.backbone.stages)
    last = model.backbone.top_block
    p6 = F.conv2d(p5, last.p6.weight, last.p6.bias, stride=2, padding=1)
    p7 = F.conv2d(p6, last.p7.weight, last.p7.bias, stride=2, padding=1)
    features = [p3, p4, p5, p6, p7]
    assert [len(f[0, 0]) for f in features] == [12, 6, 3, 2, 1]
    predictions, prototypes = model.head(features), model.protonet(p3)
    levels = model.anchor_generator(features)
    anchors = Boxes.cat(levels)
    semantic = model.sem_seg_conv(p3)

    expected = model.criterion(
        levels, predictions, prototypes, semantic, [x["instances"]], model.mask_iou_head
    )
    losses = model.train()([x])
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss > 0
        torch.testing.assert_close(loss, expected[name])

    found = model.eval()([x])[0]["instances"]
    scores = predictions.logits[0].softmax(dim=-1)[:, :-1]
    best, label = divmod(int(scores.argmax()), scores.shape[1])
    assert found.pred_classes[0] == label
    torch.testing.assert_close(found.scores[0], scores[best, label])
    x1, y1, x2, y2 = anchors.tensor[best]
    dx, dy, dw, dh = predictions.deltas[0, best] / torch.tensor([10.0, 10.0, 5.0, 5.0])
    center = torch.stack([(x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)])
    half = torch.stack([(x2 - x1) * dw.exp(), (y2 - y1) * dh.exp()]) / 2
    box = torch.cat([center - half, center + half]).clamp(0, 1)
    box = box * torch.tensor([100.0, 120.0, 100.0, 120.0])
    torch.testing.assert_close(found.pred_boxes.tensor[0], box)


def test_lazy_configs_take_the_backbones_of_detectron2s():
    cfg = model_zoo.get_config("yolact_R_50_FPN_550.py", opts=["model.image_size=110"])
    regnet = "new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ.py"
    cfg.model.backbone.bottom_up = detectron2_zoo.get_config(regnet).model.backbone.bottom_up
    cfg.model.backbone.bottom_up.norm = "BN"
    cfg.model.backbone.in_features = ["s2", "s3", "s4"]
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    assert isinstance(model.backbone, YOLACTFPN) and isinstance(model.backbone.bottom_up, RegNet)
    losses = model([training_input(BOXES, 96, 96)])
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


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


def timm_yolact(size=96, **opts):
    return tiny_yolact(
        MODEL__BACKBONE__NAME="build_yolact_fpn_backbone", size=size, **{**TIMM, **opts}
    )


@pytest.mark.parametrize(
    "name, size",
    [
        ("test_convnext", 96),
        ("test_convnext", 110),  # rounds down
        ("test_resnet", 110),  # rounds up
        ("test_mambaout", 110),  # channels last
        ("swin_tiny_patch4_window7_224", 224),  # channels last, this size only
    ],
)
def test_feature_maps_are_those_of_timm(name, size):
    timm = pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    assert_sizes_are_rounded_up(backbone, size)
    whole = timm.create_model(name, features_only=True).eval()
    whole.load_state_dict(backbone.net.state_dict())
    image = torch.rand(1, 3, size, size, requires_grad=True)
    padded = torch.zeros(1, 3, 32 * math.ceil(size / 32), 32 * math.ceil(size / 32))
    padded[:, :, :size, :size] = image
    got = backbone(image)
    for key, expected in zip(reversed(got), reversed(whole(padded))):
        if expected.shape[1] != got[key].shape[1]:
            expected = expected.permute(0, 3, 1, 2)
        height, width = got[key].shape[2:]
        torch.testing.assert_close(got[key], expected[:, :, :height, :width])
    assert list(got)[-3:] == ["res3", "res4", "res5"]
    got["res5"].square().sum().backward()
    assert image.grad[..., -1, :].any() and image.grad[..., -1].any()  # no pixel is left out


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


def test_arguments_of_timm_are_in_yaml_files(tmp_path):
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    path = tmp_path / "swin.yaml"
    path.write_text(
        f"""
_BASE_: {CONFIGS}/yolact_shapes.yaml
MODEL:
  TIMM:
    ARGS: {{img_size: 128, embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2]}}
"""
    )
    model = timm_yolact(
        config=path.with_suffix(""), size=110, MODEL__TIMM__NAME="swin_tiny_patch4_window7_224"
    )
    assert model.backbone.bottom_up.output_shape()["res5"] == ShapeSpec(channels=64, stride=32)
    assert_sizes_are_rounded_up(model.backbone, 110)
    assert_gradients_are_right(model, training_input(BOXES, 96, 96))


@pytest.mark.parametrize("limit, is_frozen", [(3, True), (2, False)])
def test_batch_norms_of_timm_are_frozen_below_a_number_of_images(limit, is_frozen):
    """Its layers are subclasses of PyTorch's, with an activation."""
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    model = timm_yolact(
        MODEL__TIMM__NAME="test_efficientnet",
        MODEL__BACKBONE__FREEZE_BN_BELOW=limit,
        SOLVER__IMS_PER_BATCH=2,
    ).train()
    norms = batch_norms(model.backbone.bottom_up)
    before = [norm.running_mean.clone() for norm in norms]
    sum(model([training_input(BOXES, 96, 96)] * 2).values()).backward()
    assert len(norms) > 10
    for norm, mean in zip(norms, before):
        assert torch.equal(norm.running_mean, mean) == is_frozen
        assert (norm.weight.grad is None) == (norm.bias.grad is None) == is_frozen


@pytest.mark.parametrize(
    "pretrained, weights, expected", [(True, "", True), (True, "m.pth", False), (False, "", False)]
)
def test_weights_of_timm_are_loaded_only_if_asked_for(pretrained, weights, expected, monkeypatch):
    timm = pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    asked = []

    def create_model(*args, pretrained, create=timm.create_model, **kwargs):
        asked.append(pretrained)
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_model)
    timm_yolact(MODEL__TIMM__PRETRAINED=pretrained, MODEL__WEIGHTS=weights)
    assert asked == [expected]


def test_wrong_backbones_are_named(monkeypatch):
    with pytest.raises(ValueError, match="set MODEL.BACKBONE.NAME to 'build_yolact_fpn_backbone'"):
        tiny_yolact(MODEL__FPN__BOTTOM_UP="build_timm_backbone")
    with pytest.raises(ValueError, match="MODEL.FPN.BOTTOM_UP is 'build_nothing'.*build_timm"):
        timm_yolact(MODEL__FPN__BOTTOM_UP="build_nothing")
    pytest.importorskip("timm", reason="needs pip install 'yolact_d2[timm]'")
    with pytest.raises(ValueError, match="MODEL.TIMM.NAME is 'convnext_tinny'.*convnext_tiny"):
        timm_yolact(MODEL__TIMM__NAME="convnext_tinny")
    with pytest.raises(ValueError, match="FREEZE_AT is 2"):
        timm_yolact(MODEL__BACKBONE__FREEZE_AT=2)
    with pytest.raises(ValueError, match="DEFORM_ON_PER_STAGE"):
        timm_yolact(config="yolact_plus_shapes")
    with pytest.raises(ValueError, match=r"no stage \['res3'.*TimmBackbone gives \['res4'\]"):
        timm_yolact(MODEL__TIMM__NAME="vit_tiny_patch16_224")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'yolact_d2\[timm\]'"):
        timm_yolact()
