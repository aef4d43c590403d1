"""What a mask is made of: contributions, partial sums, and what is recorded of a model."""

import numpy as np
import pytest
import torch

from tools.visualize_prototypes import (
    iou_with_final_mask,
    partial_sums,
    record_mask_parts,
    strongest_first,
)
from yolact_d2 import Predictor
from yolact_d2.modeling.yolact.masks import paste_masks, soft_masks


def test_strongest_first_by_hand():
    # The RMS in the box is 1, 2, 4 and 8; outside it the first prototype is by far the strongest.
    prototypes = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None].repeat(1, 2, 2)
    prototypes[0, 1] = 100.0
    inside = torch.tensor([[True, True], [False, False]])
    coefficients = torch.tensor([0.9, -1.0, 0.1, -0.3])  # contributions 0.9, 2, 0.4, 2.4
    assert strongest_first(prototypes, coefficients, inside).tolist() == [3, 1, 0, 2]
    # An RMS of sqrt(12.5) is more than a mean of 3.5.
    prototypes = torch.tensor([[[3.0, 4.0], [9.0, 9.0]], [[3.52, 3.52], [0.0, 0.0]]])
    assert strongest_first(prototypes, torch.ones(2), inside).tolist() == [0, 1]


def test_partial_sums_by_hand():
    prototypes = torch.tensor([[[1.0, 0.0]], [[2.0, 4.0]], [[0.0, 3.0]]])
    coefficients = torch.tensor([1.0, -0.5, 0.2])
    sums = partial_sums(prototypes, coefficients, torch.tensor([1, 2, 0]))
    expected = torch.tensor([[[-1.0, -2.0]], [[-1.0, -1.4]], [[0.0, -1.4]]])
    torch.testing.assert_close(sums, expected)


def test_iou_with_final_mask_by_hand():
    # The last column is outside the box, where the masks differ most.
    logits = torch.tensor([[[1.0, 1.0, 0.0, -9]], [[0.0, 1.0, 1.0, -9]], [[-1.0, 2.0, 1.0, 9]]])
    inside = torch.tensor([[True, True, True, False]])
    assert iou_with_final_mask(logits, inside).tolist() == pytest.approx([1 / 3, 1.0, 1.0])
    assert iou_with_final_mask(-logits.abs(), inside).tolist() == [1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("config", ["shapes_cfg", "plus_shapes_cfg"])
def test_recorded_parts_make_the_masks_of_the_model(config, image, request):
    cfg = request.getfixturevalue(config)
    cfg.INPUT.IMAGE_SIZE = 96
    cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [4]
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0  # an untrained model has low scores
    torch.manual_seed(0)
    predictor = Predictor(cfg, confidence_threshold=0)
    with torch.no_grad():  # so that the masks differ
        predictor.model.head.mask_coefficients.weight.mul_(20)
    parts = record_mask_parts(predictor, image)
    assert parts.prototypes.shape == (16, 24, 24)
    assert parts.coefficients.shape == (100, 16) and parts.boxes.shape == (100, 4)

    masks = soft_masks(parts.prototypes, parts.coefficients, parts.boxes)
    expected = predictor(image)
    assert torch.equal(parts.instances.pred_masks, expected.pred_masks)
    assert torch.equal(paste_masks(masks, parts.boxes, (40, 60)), expected.pred_masks)
    assert len(set(masks.flatten(1).sum(dim=1).tolist())) == len(masks)
    chosen = Predictor(cfg, classes=[int(expected.pred_classes[-1])])
    chosen.model = predictor.model
    some = record_mask_parts(chosen, image)
    masks = soft_masks(some.prototypes, some.coefficients, some.boxes)
    assert 0 < len(masks) < 100 and len(set(some.instances.pred_classes.tolist())) == 1
    assert torch.equal(paste_masks(masks, some.boxes, (40, 60)), some.instances.pred_masks)
    # Boxes that are not clipped: 24 cells are 60 columns and 40 rows.
    boxes, cells = expected.pred_boxes.tensor, parts.boxes
    whole = (cells.amin(dim=1) >= 0) & (cells.amax(dim=1) <= 24)
    assert whole.any()
    pixels = cells * torch.tensor([2.5, 40 / 24, 2.5, 40 / 24])
    torch.testing.assert_close(boxes[whole], pixels[whole], rtol=0, atol=1e-3)


def test_recording_leaves_no_hooks(shapes_cfg, image, monkeypatch):
    shapes_cfg.INPUT.IMAGE_SIZE = 64
    predictor = Predictor(shapes_cfg)
    record_mask_parts(predictor, image)
    monkeypatch.setattr(predictor.model, "inference_single_image", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_mask_parts(predictor, image)
    assert not any(module._forward_hooks for module in predictor.model.modules())
