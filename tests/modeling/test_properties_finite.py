"""No NaN comes out of the model, the losses or their gradients, whatever finite goes in."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import tiny_yolact
from strategies import finite_floats, ground_truths, images, seeds, tensors

from yolact_d2.modeling import NMS_REGISTRY, DensePredictions, MaskIoUHead
from yolact_d2.modeling.criterion import YOLACTCriterion

NUM_ANCHORS, NUM_CLASSES, NUM_PROTOTYPES = 6, 2, 3
anything = finite_floats | st.sampled_from([float("nan"), float("inf"), -float("inf")])


@pytest.fixture(scope="module")
def model():
    """Of which only what follows the network is used."""
    model = tiny_yolact()
    model.mask_iou_head = MaskIoUHead(conv_dims=[4], num_classes=NUM_CLASSES, mask_size=5)
    return model.eval()


def _predictions(data, elements):
    return DensePredictions(
        logits=data.draw(tensors((NUM_ANCHORS, NUM_CLASSES + 1), elements)),
        deltas=data.draw(tensors((NUM_ANCHORS, 4), elements)),
        coefficients=data.draw(tensors((NUM_ANCHORS, NUM_PROTOTYPES), elements)),
    )


def _anchors(seed):
    corners = torch.rand(NUM_ANCHORS, 2, 2, generator=torch.Generator().manual_seed(seed)) * 1.2
    return Boxes(torch.cat([corners.amin(dim=1) - 0.1, corners.amax(dim=1)], dim=1))


def _assert_no_nan(instances):
    assert instances.pred_boxes.tensor.isfinite().all()
    for scores in (instances.scores, instances.get_fields().get("mask_scores")):
        assert scores is None or scores.isfinite().all()
    assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
    assert instances.pred_masks.dtype == torch.bool


@pytest.mark.parametrize("elements", [finite_floats, anything], ids=["finite", "not finite"])
@pytest.mark.parametrize("nms", ["fast_nms", "cross_class_fast_nms", "batched_nms"])
@settings(max_examples=60)
@given(st.data(), seeds)
def test_no_nan_for_any_outputs_of_the_network(model, nms, elements, data, seed):
    model.nms = NMS_REGISTRY.get(nms)
    predictions = _predictions(data, elements)
    prototypes = data.draw(tensors((NUM_PROTOTYPES, 5, 6), elements))
    with torch.no_grad():
        found = model.inference_single_image(_anchors(seed), predictions, prototypes, (9, 14))
    _assert_no_nan(found)
    if elements is finite_floats:
        assert len(found) > 0 or nms == "batched_nms"


@settings(max_examples=60)
@given(st.data(), seeds)
def test_ordinary_outputs_are_left_as_they_are(model, data, seed):
    """To the last bit: coding, softmax, combination and sigmoid, with nothing between."""
    numbers = st.floats(-30, 30, width=32)
    predictions = _predictions(data, numbers)
    anchors = _anchors(seed)
    model.nms = NMS_REGISTRY.get("fast_nms")
    boxes, scores, classes, coefficients = model.detect(anchors, predictions)
    decoded = model.box2box_transform.apply_deltas(predictions.deltas, anchors.tensor)
    all_scores = predictions.logits.softmax(dim=1)
    for box, score, c, coefficient in zip(boxes, scores, classes, coefficients):
        same = (decoded == box).all(dim=1) & (all_scores[:, c] == score)
        assert (same & (predictions.coefficients == coefficient).all(dim=1)).any()


CRITERION = YOLACTCriterion(
    box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
    num_classes=NUM_CLASSES,
    min_mask_iou_area=0,
    loss_weights=dict.fromkeys(
        ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "loss_mask_iou"), 1.0
    ),
)
SIZE = 32


@settings(max_examples=80)
@given(
    seeds,
    st.tuples(*[st.sampled_from([0.0, 1e-30, 1.0, 100.0, 1e4])] * 5),
    st.lists(ground_truths(SIZE, NUM_CLASSES), min_size=1, max_size=3),
)
def test_losses_and_gradients_are_finite(model, seed, largest, gt_instances):
    """For predictions of up to 1e4, all of one sign or not."""
    num, generator = len(gt_instances), torch.Generator().manual_seed(seed)

    def outputs(magnitude, *shape):
        x = (torch.rand(num, *shape, generator=generator) * 2 - 1) * magnitude
        return x.sign().mul(magnitude).where(x > 0, x).requires_grad_()

    logits = outputs(largest[0], NUM_ANCHORS, NUM_CLASSES + 1)
    deltas = outputs(largest[1], NUM_ANCHORS, 4)
    raw_coefficients = outputs(largest[2], NUM_ANCHORS, NUM_PROTOTYPES)
    raw_prototypes = outputs(largest[3], NUM_PROTOTYPES, 8, 8)
    sem_seg_logits = outputs(largest[4], NUM_CLASSES, 4, 4)
    losses = CRITERION(
        _anchors(seed),
        DensePredictions(logits, deltas, raw_coefficients.tanh()),
        raw_prototypes.relu(),
        sem_seg_logits,
        gt_instances,
        model.mask_iou_head,
    )
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values()), losses
    leaves = [logits, deltas, raw_coefficients, raw_prototypes, sem_seg_logits]
    leaves += model.mask_iou_head.parameters()
    for gradient in torch.autograd.grad(sum(losses.values()), leaves):
        assert gradient.isfinite().all()


@pytest.fixture(scope="module", params=["yolact_shapes", "yolact_plus_shapes"])
def whole_model(request):
    return tiny_yolact(request.param).eval()


@settings(max_examples=12)
@given(images(), st.integers(1, 40), st.integers(1, 40))
def test_no_nan_for_any_picture(whole_model, image, height, width):
    with torch.no_grad():
        found = whole_model([{"image": image, "height": height, "width": width}])
    _assert_no_nan(found[0]["instances"])
    assert len(found[0]["instances"]) > 0


@settings(max_examples=12)
@given(images(max_side=20), st.sampled_from([1e10, 1e20, 1e30, 1e36, -1e30]), st.booleans())
def test_no_nan_for_pictures_of_absurd_brightness(whole_model, image, factor, one_pixel):
    """They may overflow in the network, all of them or where one pixel is seen."""
    if one_pixel:
        image[:, 0, 0] = factor
    else:
        image *= factor
    with torch.no_grad():
        _assert_no_nan(whole_model([{"image": image}])[0]["instances"])
