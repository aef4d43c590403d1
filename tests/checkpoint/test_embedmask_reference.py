"""EmbedMask with an official checkpoint computes what the authors' code computes."""

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

from yolact_d2 import model_zoo
from yolact_d2.checkpoint import to_official
from yolact_d2.modeling.embedmask import criterion

DATA = Path(__file__).resolve().parents[1] / "data"
IMAGES = {"": ((11, 427, 640), 800), "small_": ((13, 250, 391), 320)}


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "embedmask_R50.npz")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An official checkpoint on disk, as the authors' trainer saves it."""
    shapes = json.loads((DATA / "embedmask_R50.keys.json").read_text())
    gains = json.loads((DATA / "embedmask_R50.gains.json").read_text())
    tensors = rule.state_dict(shapes, gains)
    path = tmp_path_factory.mktemp("weights") / "embedmask_R50.pth"
    model = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"model": model, "iteration": 90000}, path)
    return str(path)


def config(weights, size=800):
    return model_zoo.get_config(
        "embedmask_R_50_FPN_1x",
        weights=weights,
        opts=["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", size],
    )


@pytest.mark.parametrize("prefix", IMAGES)
def test_detections_and_raw_outputs(weights, reference, prefix):
    source, size = IMAGES[prefix]
    predictor, found = DefaultPredictor(config(weights, size)), {}
    head = predictor.model.head
    head.register_forward_hook(lambda m, i, out: found.update(out=out, points=i[1]))
    image = rule.image(*source)
    instances = predictor(image)["instances"]
    if not prefix:
        check_raw_outputs(found["out"], found["points"], predictor.model.strides, reference)

    expected = {k: reference[prefix + k] for k in ("boxes", "classes", "scores", "rle")}
    boxes, scores = instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
    ious = []
    for i in range(100):
        same = (
            (instances.pred_classes.numpy() == expected["classes"][i])
            & (np.abs(boxes - expected["boxes"][i]).max(axis=1) <= 1)
            & (np.abs(scores - expected["scores"][i]) < 1e-3)
        ).nonzero()[0]
        if len(same):
            rle = {"size": image.shape[:2], "counts": str(expected["rle"][i]).encode()}
            mask, got = mask_api.decode(rle) > 0, instances.pred_masks[same[0]].numpy()
            both, either = (mask & got).sum(), (mask | got).sum()
            ious.append(both / either if either else 1.0)
    assert len(instances) == 100 and len(ious) >= 97
    assert np.percentile(ious, 5) >= 0.99


def check_raw_outputs(outputs, points, strides, reference):
    index = reference["idx"]
    steps = np.concatenate([[s] * len(level) for s, level in zip(strides, points)])[index, None]
    got = {
        "logits": outputs.logits[0, index],
        "reg": outputs.distances[0, index] * torch.tensor(steps),
        "ctr": outputs.centerness[0, index, None],
        "embed": outputs.embeddings[0, index],
        "margin": outputs.margins[0, index],
    }
    for name, values in got.items():
        expected = reference[name]
        assert values.shape == expected.shape
        assert np.abs(values.numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_losses_targets_and_gradients(weights, reference, monkeypatch):
    cfg = config(weights)
    model = build_model(cfg).train()
    model.load_state_dict(DefaultPredictor(cfg).model.state_dict())
    boxes, classes, masks = map(torch.as_tensor, rule.bitten_ellipses(21, 448, 576, 9))
    gt = Instances((448, 576), gt_boxes=Boxes(boxes), gt_classes=classes)
    gt.gt_masks = BitMasks(masks)
    seen = {}

    def spy(name):
        original = getattr(criterion, name)

        def call(*args):
            seen[name] = args, original(*args)
            return seen[name][1]

        monkeypatch.setattr(criterion, name, call)

    for name in ("mask_losses", "assign_objects", "best_locations"):
        spy(name)
    image = torch.as_tensor(rule.image(21, 448, 576).transpose(2, 0, 1).copy())
    losses = model([{"image": image, "instances": gt}])
    names = {"loss_box_reg": "loss_reg", "loss_mask": "mask_loss"}
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness", "loss_mask"}
    for name, loss in losses.items():
        expected = float(reference[names.get(name, name)])
        assert loss.item() == pytest.approx(expected, rel=1e-4), name
    each = seen["mask_losses"][1].detach().numpy()
    np.testing.assert_allclose(each, reference["mask_each"], rtol=1e-4)
    best, has_location = seen["best_locations"][1]
    assert torch.where(has_location, best, -1).tolist() == reference["best"].tolist()
    assigned = seen["assign_objects"][1]
    locations = (assigned >= 0).nonzero().squeeze(1).tolist()
    positives = sorted(reference["positives"][:, 1:].tolist())
    assert positives == [[x, classes[assigned[x]].item(), assigned[x].item()] for x in locations]

    sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    gradients = to_official(gradients)
    for key, norm in zip(reference["grad_keys"], reference["grad_norms"]):
        assert gradients[str(key)].norm().item() == pytest.approx(norm, rel=1e-3), key
