"""What a mask is made of: strengths, partial sums and the recording of a model."""

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor

from yolact_d2.modeling.masks import assemble_masks, paste_masks, soft_masks
from yolact_d2.visualization.prototypes import (
    agreement,
    build_up,
    prototype_energies,
    record_mask_parts,
    strongest_first,
)


def test_energy_is_that_inside_the_box():
    prototypes = torch.tensor([[[3.0, 4.0], [9.0, 9.0]], [[0.0, 0.0], [7.0, 7.0]]])
    inside = torch.tensor([[True, True], [False, False]])
    assert prototype_energies(prototypes, inside).tolist() == pytest.approx([12.5**0.5, 0.0])


def test_strongest_first_by_hand():
    # Energies in the box are 1, 2, 4 and 8; outside it the first is by far the strongest.
    prototypes = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None].repeat(1, 2, 2)
    prototypes[0, 1] = 100.0
    inside = torch.tensor([[True, True], [False, False]])
    coefficients = torch.tensor([0.9, -1.0, 0.1, -0.3])  # strengths 0.9, 2, 0.4, 2.4
    assert strongest_first(prototypes, coefficients, inside).tolist() == [3, 1, 0, 2]


def test_build_up_by_hand():
    prototypes = torch.tensor([[[1.0, 0.0]], [[2.0, 4.0]], [[0.0, 3.0]]])
    coefficients = torch.tensor([1.0, -0.5, 0.2])
    steps = build_up(prototypes, coefficients, torch.tensor([1, 2, 0]))
    expected = torch.tensor([[[-1.0, -2.0]], [[-1.0, -1.4]], [[0.0, -1.4]]])
    torch.testing.assert_close(steps, expected)


def test_build_up_ends_with_the_assembled_mask():
    torch.manual_seed(0)
    prototypes, coefficients = torch.rand(32, 7, 9), torch.rand(32) * 2 - 1
    order = strongest_first(prototypes, coefficients, torch.ones(7, 9, dtype=torch.bool))
    assert sorted(order.tolist()) == list(range(32))
    steps = build_up(prototypes, coefficients, order)
    assert steps.shape == (32, 7, 9)
    torch.testing.assert_close(steps[-1], assemble_masks(prototypes, coefficients[None])[0])
    first_two = coefficients[order[:2], None, None] * prototypes[order[:2]]
    torch.testing.assert_close(steps[1], first_two.sum(dim=0))


def test_agreement_by_hand():
    # The last column is outside the box, where the steps differ most.
    steps = torch.tensor([[[1.0, 1.0, 0.0, -9]], [[0.0, 1.0, 1.0, -9]], [[-1.0, 2.0, 1.0, 9]]])
    inside = torch.tensor([[True, True, True, False]])
    assert agreement(steps, inside).tolist() == pytest.approx([1 / 3, 1.0, 1.0])
    assert agreement(-steps.abs(), inside).tolist() == [1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("config", ["shapes_cfg", "plus_shapes_cfg"])
def test_recorded_parts_make_the_masks_of_the_model(config, image, request):
    cfg = request.getfixturevalue(config)
    cfg.INPUT.IMAGE_SIZE = 96
    cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [4]
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0  # an untrained model is sure of nothing
    torch.manual_seed(0)
    predictor = DefaultPredictor(cfg)
    with torch.no_grad():  # or the masks are all alike, and one could stand for another
        predictor.model.head.mask_coefficients.weight.mul_(20)
    parts = record_mask_parts(predictor, image)
    assert parts.prototypes.shape == (16, 24, 24)
    assert parts.coefficients.shape == (100, 16) and parts.boxes.shape == (100, 4)
    assert not parts.prototypes.requires_grad

    masks = soft_masks(parts.prototypes, parts.coefficients, parts.boxes)
    expected = predictor(image)["instances"]
    assert torch.equal(parts.instances.pred_masks, expected.pred_masks)
    assert torch.equal(paste_masks(masks, parts.boxes, (40, 60)), expected.pred_masks)
    assert len(set(masks.flatten(1).sum(dim=1).tolist())) == len(masks)
    # In pixels, where they are not clipped: 24 cells are 60 columns and 40 rows.
    boxes, cells = expected.pred_boxes.tensor, parts.boxes
    whole = (cells.amin(dim=1) >= 0) & (cells.amax(dim=1) <= 24)
    assert whole.any()
    pixels = cells * torch.tensor([2.5, 40 / 24, 2.5, 40 / 24])
    torch.testing.assert_close(boxes[whole], pixels[whole], rtol=0, atol=1e-3)


def test_recording_leaves_no_hooks(shapes_cfg, image, monkeypatch):
    shapes_cfg.INPUT.IMAGE_SIZE = 64
    predictor = DefaultPredictor(shapes_cfg)
    model = predictor.model
    record_mask_parts(predictor, image)
    monkeypatch.setattr(model, "inference_single_image", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record_mask_parts(predictor, image)
    assert not any(module._forward_hooks for module in model.modules())
