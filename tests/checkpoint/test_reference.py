"""The model with an official checkpoint computes what the authors' code computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference_rule as rule
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as mask_api

from yolact_d2 import load_config

TESTS = Path(__file__).resolve().parents[1]
CONFIGS = {
    "yolact_resnet50": "yolact_R_50_FPN_550.yaml",
    "yolact_plus_resnet50": "yolact_plus_R_50_FPN_550.yaml",
}
HEIGHT, WIDTH = 427, 640


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def reference(name):
    return np.load(TESTS / "data" / f"{name}.npz")


@pytest.fixture(scope="module")
def cfg(name, tmp_path_factory):
    """With an official checkpoint on disk."""
    shapes = json.loads((TESTS / "data" / f"{name}.keys.json").read_text())
    gains = json.loads((TESTS / "data" / "gains.json").read_text())[name]
    path = tmp_path_factory.mktemp("weights") / f"{name}_54_800000.pth"
    torch.save(rule.state_dict(shapes, gains), path)
    return load_config(
        str(TESTS.parent / "configs" / CONFIGS[name]),
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(path), "MODEL.YOLACT.MAX_MASK_POSITIVES", 0],
    )


@pytest.fixture(scope="module")
def outputs(cfg):
    """Everything that a prediction goes through."""
    predictor, found = DefaultPredictor(cfg), {}
    predictor.model.drop_empty_boxes = False  # the authors' code keeps them
    for name in ("head", "protonet", "anchor_generator"):
        module = getattr(predictor.model, name)
        module.register_forward_hook(lambda m, i, out, name=name: found.update({name: out}))
    found["instances"] = predictor(rule.image(11, HEIGHT, WIDTH))["instances"]
    found["model"] = predictor.model
    return found


def assert_relatively_close(got, expected, tolerance=1e-4):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_anchors(name, outputs, reference):
    boxes = Boxes.cat(outputs["anchor_generator"]).tensor.numpy()
    assert len(boxes) == (57744 if "plus" in name else 19248)
    x1, y1, x2, y2 = boxes[reference["idx"]].T
    got = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
    np.testing.assert_allclose(got, reference["priors"], atol=1e-6)


def test_raw_outputs(outputs, reference):
    head, index = outputs["head"], reference["idx"]
    scores = head.logits[0, index].softmax(dim=-1).numpy()
    assert_relatively_close(np.roll(scores, 1, axis=1), reference["conf"])
    assert_relatively_close(head.deltas[0, index].numpy(), reference["loc"])
    assert_relatively_close(head.coefficients[0, index].numpy(), reference["coef"])
    prototypes = outputs["protonet"][0, :, ::18, ::18].permute(1, 2, 0).numpy()
    assert_relatively_close(prototypes, reference["proto"])


def test_detections(name, outputs, reference):
    instances = outputs["instances"]
    assert len(instances) == 100
    boxes = instances.pred_boxes.tensor.numpy()
    scores, classes = instances.scores.numpy(), instances.pred_classes.numpy()
    assert instances.has("mask_scores") == ("plus" in name)
    matched = 0
    for i in range(100):
        same = (
            (classes == reference["classes"][i])
            & (np.abs(boxes - reference["boxes"][i]).max(axis=1) <= 1)
            & (np.abs(scores - reference["scores"][i]) < 1e-3)
        ).nonzero()[0]
        if len(same) == 0:
            continue
        matched += 1
        if "plus" in name:
            expected = reference["mask_scores"][i]
            assert instances.mask_scores[same[0]].item() == pytest.approx(expected, abs=1e-3)
        if reference["areas"][i] > 50:
            rle = {"size": [HEIGHT, WIDTH], "counts": str(reference["rle"][i]).encode()}
            expected = mask_api.decode(rle).astype(bool)
            got = instances.pred_masks[same[0]].numpy()
            assert (got & expected).sum() >= 0.99 * (got | expected).sum()
    assert matched >= 97


def test_losses(name, cfg, outputs, reference):
    model = build_model(cfg).train()
    model.load_state_dict(outputs["model"].state_dict())
    size = cfg.INPUT.IMAGE_SIZE
    boxes, classes, masks = rule.ground_truth(21, size, 5, cfg.MODEL.YOLACT.NUM_CLASSES)
    gt = Instances((size, size))
    gt.gt_boxes, gt.gt_classes = Boxes(torch.tensor(boxes)), torch.tensor(classes)
    gt.gt_masks, gt.gt_iscrowd = BitMasks(torch.tensor(masks)), torch.zeros(5, dtype=torch.bool)
    rgb = np.ascontiguousarray(rule.image(21, size, size)[:, :, ::-1].transpose(2, 0, 1))
    losses = model([{"image": torch.from_numpy(rgb), "instances": gt}])
    keys = {
        "loss_box_reg": "loss_B",
        "loss_cls": "loss_C",
        "loss_mask": "loss_M",
        "loss_sem_seg": "loss_S",
    }
    if "plus" in name:
        keys["loss_mask_iou"] = "loss_I"
    assert set(losses) == set(keys)
    for loss, key in keys.items():
        assert losses[loss].item() == pytest.approx(float(reference[key]), rel=1e-4), loss
