"""Checkpoints that do not fit a model are refused, with what they are and what differs."""

import pytest
import torch
from checkpoints import backbone_of, build, official, refused, save

from yolact_d2.checkpoint import CheckpointMismatch, YOLACTCheckpointer


def test_incomplete_backbones_are_refused(tmp_path):
    model = build("yolact_plus_R_50_FPN_550")
    for name, missing in (
        ("yolact_resnet50", "conv2.weight"),
        ("yolact_resnet50", "bn2.bias"),
        ("yolact_resnet50", "conv3.weight"),
        ("yolact_plus_resnet50", "conv2.conv_offset_mask.bias"),
    ):
        plain = backbone_of(official(name))
        del plain[f"layers.2.1.{missing}"]
        message = refused(model, save(tmp_path, plain))
        assert "missing: backbone.bottom_up.res4.1.conv" in message


def test_any_wrong_tensor_is_refused(tmp_path):
    model = build("yolact_plus_shapes")
    tensors = model.state_dict()
    checkpointer = YOLACTCheckpointer(model)
    for key in tensors:
        if key.endswith("num_batches_tracked"):
            continue
        without = {name: value for name, value in tensors.items() if name != key}
        for wrong in (
            without,
            {**tensors, key: torch.zeros(7)},
            {**without, "other": tensors[key]},
        ):
            with pytest.raises(CheckpointMismatch):
                checkpointer._load_model({"model": wrong})


def test_yolact_and_yolact_plus_are_told_apart(tmp_path):
    plus = save(tmp_path, official("yolact_plus_resnet50"), "plus.pth")
    plain = save(tmp_path, official("yolact_resnet50"), "plain.pth")
    message = refused(build("yolact_R_50_FPN_550"), plus)
    assert (
        "this is yolact_plus_resnet50 (YOLACT++ with ResNet-50, 80 classes, 9 anchors a cell, 13 "
        "deformable blocks, mask re-scoring)" in message
    )
    message = refused(build("yolact_plus_R_50_FPN_550"), plain)
    assert "this is yolact_resnet50 (" in message
    assert "the config's model is yolact_plus_resnet50 (" in message
    message = refused(build("yolact_plus_R_101_FPN_550"), plus)
    assert "the config's model is yolact_plus_base (" in message


@pytest.mark.slow
def test_other_backbones_and_intervals_are_refused(tmp_path):
    model = build("yolact_R_50_FPN_550")
    message = refused(model, save(tmp_path, official("yolact_darknet53")))
    assert "this is yolact_darknet53 (" in message
    assert "the config's model is yolact_resnet50 (" in message
    assert "missing: backbone.bottom_up.stem.conv1.weight" in message
    assert "unexpected: backbone.bottom_up" in message and "more" in message
    theirs = official("yolact_base")
    assert "this is yolact_base" in refused(model, save(tmp_path, theirs))
    assert "this is a bare ResNet-101" in refused(model, save(tmp_path, backbone_of(theirs)))

    model = build("yolact_plus_R_101_FPN_550", "MODEL.RESNETS.DEFORM_INTERVAL", 1)
    message = refused(model, save(tmp_path, official("yolact_plus_base")))
    assert "11 deformable blocks" in message and "30 deformable blocks" in message
    assert "missing: backbone.bottom_up.res3.1.conv2.bias" in message


def test_backbones_of_another_width_are_refused(tmp_path):
    depth = "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP"
    tensors = build("yolact_shapes", *depth, 16).state_dict()
    message = refused(build("yolact_shapes", *depth, 32), save(tmp_path, tensors))
    assert "of another shape: backbone.bottom_up." in message and "NEW_CLASSES" not in message


def test_checkpoint_without_class_layers_starts_new_classes(tmp_path):
    model = build("yolact_shapes")
    tensors = {k: v for k, v in model.state_dict().items() if "cls_score" not in k}
    path = save(tmp_path, tensors)
    assert "missing: head.cls_score" in refused(model, path)
    YOLACTCheckpointer(model, new_classes=True).warm_start(path)


def test_wrong_number_of_classes_is_refused_with_the_two_ways_out(tmp_path):
    path = save(tmp_path, official("yolact_resnet50_pascal"))
    for warm_start in (False, True):
        message = refused(build("yolact_R_50_FPN_550"), path, warm_start)
        assert "this is yolact_resnet50_pascal (YOLACT with ResNet-50, 20 classes" in message
        assert "MODEL.YOLACT.NEW_CLASSES" in message and "MODEL.YOLACT.NUM_CLASSES" in message
        assert "head.cls_score.weight (63, 256, 3, 3) for (243, 256, 3, 3)" in message


def test_models_of_other_parts_are_refused_by_name(tmp_path):
    papers, modern = build("yolact_hard_shapes"), build("yolact_modern_shapes")
    sigmoid = build(
        "yolact_hard_shapes",
        *("MODEL.YOLACT.CRITERION", "ComposedCriterion", "MODEL.YOLACT.CLS_LOSS_TYPE", "bce"),
    )
    old = save(tmp_path, papers.state_dict(), "old.pth")
    new = save(tmp_path, modern.state_dict(), "new.pth")
    for warm_start in (False, True):
        message = refused(modern, old, warm_start)
        assert "this is YOLACT with ResNet-50, 8 classes, 6 anchors a cell;" in message
        assert "8 classes, 1 anchors a cell, DecoupledHead, without a background class" in message
        assert "NEW_CLASSES" not in message
        assert "missing: head.conv.weight" in refused(papers, new, warm_start)
    message = refused(sigmoid, old, warm_start=False)
    assert "8 classes, 6 anchors a cell, without a background class" in message
    assert "head.cls_score.weight (54, 128, 3, 3) for (48, 128, 3, 3)" in message
    YOLACTCheckpointer(sigmoid).warm_start(old)  # with another class layer
    assert torch.equal(sigmoid.head.bbox_pred.weight, papers.head.bbox_pred.weight)
    seven = build("yolact_hard_shapes", "MODEL.YOLACT.NUM_CLASSES", 7)
    for model, other in ((sigmoid, seven), (seven, sigmoid)):  # as many outputs
        assert "sem_seg_conv" in refused(model, save(tmp_path, other.state_dict()))
        initial = model.head.cls_score.weight.clone()
        with torch.no_grad():
            other.head.bbox_pred.bias += 1
        path = save(tmp_path, other.state_dict())
        YOLACTCheckpointer(model, new_classes=True).warm_start(path)
        assert torch.equal(model.head.cls_score.weight, initial)
        assert torch.equal(model.head.bbox_pred.bias, other.head.bbox_pred.bias)


def test_incomplete_and_foreign_checkpoints_are_refused(tmp_path):
    model = build("yolact_shapes")
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    assert "missing: head." in refused(model, save(tmp_path, tensors))
    other = {"model": {"proposal_generator.anchor_deltas.weight": torch.zeros(4)}}
    message = refused(model, save(tmp_path, other))
    assert "this is no checkpoint of YOLACT or EmbedMask (it has proposal_generator)" in message
    assert "unexpected: proposal_generator.anchor_deltas.weight" in message
    assert "it has no tensors" in refused(model, save(tmp_path, {}))


def test_other_embedmasks_are_refused_by_name(tmp_path):
    model = build("embedmask_R_50_FPN_1x")
    r50 = {key: value * 0.01 for key, value in official("embedmask_R50").items()}
    YOLACTCheckpointer(model).load(save(tmp_path, {"model": r50, "iteration": 1}))
    message = refused(model, save(tmp_path, official("embedmask_R101")), warm_start=False)
    assert "this is EmbedMask with ResNet-101, 80 classes" in message
    assert "the config's model is EmbedMask with ResNet-50, 80 classes" in message
    r50_path = save(tmp_path, r50, "r50.pth")
    few = build("embedmask_R_50_FPN_1x", "MODEL.EMBEDMASK.NUM_CLASSES", 3)
    message = refused(few, r50_path)
    assert "the config's model is EmbedMask with ResNet-50, 3 classes" in message
    assert "set MODEL.EMBEDMASK.NEW_CLASSES to True" in message
    YOLACTCheckpointer(few, new_classes=True).warm_start(r50_path)
    assert torch.equal(few.head.ctrness.weight, r50["rpn.head.centerness.weight"])
    message = refused(model, save(tmp_path, official("yolact_resnet50")))
    assert "this is yolact_resnet50 (YOLACT with ResNet-50" in message
    assert "the config's model is EmbedMask with" in message
    message = refused(build("yolact_R_50_FPN_550"), r50_path)
    assert "this is EmbedMask with ResNet-50, 80 classes" in message
