"""Properties of the model for any inputs: no NaN, independence of the batch."""

from unittest import mock

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import tiny_yolact, with_double_network
from strategies import finite_floats, ground_truths, images, seeds, tensors

from yolact_d2.modeling import NMS_REGISTRY, DensePredictions, MaskIoUHead
from yolact_d2.modeling.instance_detector import clamp_finite
from yolact_d2.modeling.yolact.batch import batch_instances, batch_masks, choose_batch
from yolact_d2.modeling.yolact.criterion import YOLACTCriterion

CONFIGS = ["yolact_shapes", "yolact_plus_shapes"]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return tiny_yolact(request.param).eval()


@st.composite
def _batches(draw):
    """Some images, and the indices of some of them in another order."""
    batch = draw(st.lists(images(max_side=60), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(batch))))
    return [{"image": x} for x in batch], order[: draw(st.integers(1, len(batch)))]


@settings(max_examples=6)
@given(_batches())
@torch.no_grad()
def test_on_a_cpu_results_do_not_depend_on_the_batch(model, drawn):
    batch, order = drawn
    expected, found = model(batch), model([batch[i] for i in order])
    for i, result in zip(order, found):
        fields, others = result["instances"].get_fields(), expected[i]["instances"].get_fields()
        assert torch.equal(fields.pop("pred_boxes").tensor, others.pop("pred_boxes").tensor)
        assert fields and all(torch.equal(value, others[name]) for name, value in fields.items())


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_results_of_one_batch_do_not_depend_on_the_batch_up_to_rounding(config):
    """For images that go through the network together, as on a GPU."""
    model = with_double_network(tiny_yolact(config)).eval()

    @settings(max_examples=8)
    @given(_batches())
    @torch.no_grad()
    def check(drawn):
        batch, order = drawn
        expected, found = model.forward_batch(batch), model.forward_batch([batch[i] for i in order])
        for i, result in zip(order, found):
            result, other = result["instances"], expected[i]["instances"]
            assert len(result) > 0
            assert torch.equal(result.pred_classes, other.pred_classes)
            torch.testing.assert_close(
                result.pred_boxes.tensor,
                other.pred_boxes.tensor,
                rtol=0,
                atol=1e-5 * max(result.image_size),
            )
            torch.testing.assert_close(result.scores, other.scores, rtol=0, atol=1e-6)
            assert (result.pred_masks != other.pred_masks).float().mean() < 1e-4

    check()


NUM_ANCHORS, NUM_CLASSES, NUM_PROTOTYPES = 6, 2, 3
SIZE = 9, 14


@pytest.fixture(scope="module")
def postprocessing():
    """A model whose network is not used."""
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


def _assert_no_nan(instances, boxes=True):
    assert instances.pred_boxes.tensor.isfinite().all()
    assert instances.pred_boxes.nonempty().all() or not boxes
    for scores in (instances.scores, instances.get_fields().get("mask_scores")):
        assert scores is None or scores.isfinite().all()
    assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
    assert instances.pred_masks.dtype == torch.bool


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("nms", ["fast_nms", "cross_class_fast_nms", "batched_nms"])
@settings(max_examples=30)
@given(st.data(), seeds)
@torch.no_grad()
def test_no_nan_for_any_outputs_of_the_network(postprocessing, nms, finite, data, seed):
    elements = finite_floats
    if not finite:
        elements |= st.sampled_from([float("nan"), float("inf"), -float("inf")])
    postprocessing.nms = NMS_REGISTRY.get(nms)
    predictions = _predictions(data, elements)
    prototypes = data.draw(tensors((NUM_PROTOTYPES, 5, 6), elements))
    inputs = _anchors(seed), predictions, prototypes, SIZE
    found = postprocessing.inference_single_image(*inputs)
    _assert_no_nan(found)
    with mock.patch.object(postprocessing, "drop_empty_boxes", False):
        everything = postprocessing.inference_single_image(*inputs)
    _assert_no_nan(everything, boxes=False)
    relative = Boxes(everything.pred_boxes.tensor / torch.tensor(SIZE[::-1] * 2))
    assert torch.equal(found.scores, everything.scores[relative.nonempty(1e-6)])
    if finite:
        assert len(everything) > 0 or nms == "batched_nms"
    if nms == "fast_nms":
        _assert_a_batch_has_these_detections(postprocessing, found, *inputs[:3])


def _assert_a_batch_has_these_detections(model, expected, anchors, predictions, prototypes):
    """Twice, by the functions for batches; some after a threshold."""
    predictions = DensePredictions(*(torch.stack([x, x]) for x in predictions))
    thresh = model.test_anchor_score_thresh
    decoded = model.decode_batch(anchors.tensor, predictions, thresh)
    found = choose_batch(*decoded, **model.nms_limits)
    prototypes = clamp_finite(torch.stack([prototypes, prototypes]))
    masks = batch_masks(found, prototypes, model.mask_iou_head)
    results = {t: batch_instances(found, masks, [SIZE, SIZE], t) for t in (-1.0, 0.0, 0.3)}
    for x in (*found, *masks):  # as the next run of a CUDA graph does
        x.zero_()
    for thresh, batch in results.items():
        rest = expected[expected.scores >= thresh]
        for instances in batch:
            assert len(instances) == len(rest)
            assert torch.equal(instances.pred_classes, rest.pred_classes)
            torch.testing.assert_close(instances.pred_boxes.tensor, rest.pred_boxes.tensor)
            torch.testing.assert_close(instances.scores, rest.scores)
            torch.testing.assert_close(instances.mask_scores, rest.mask_scores)
            assert (instances.pred_masks != rest.pred_masks).float().mean() <= 0.01 or not len(rest)


@settings(max_examples=12)
@given(images(), st.integers(1, 40), st.integers(1, 40))
@torch.no_grad()
def test_no_nan_for_any_image(model, image, height, width):
    found = model([{"image": image, "height": height, "width": width}])[0]["instances"]
    _assert_no_nan(found)
    assert found.image_size == found.pred_masks.shape[1:] == (height, width)
    assert len(found) > 0


@settings(max_examples=12)
@given(images(max_side=20), st.sampled_from([1e10, 1e20, 1e30, 1e36, -1e30]), st.booleans())
@torch.no_grad()
def test_no_nan_for_images_that_overflow_in_the_network(model, image, factor, one_pixel):
    if one_pixel:
        image[:, 0, 0] = factor
    else:
        image *= factor
    _assert_no_nan(model([{"image": image}])[0]["instances"])


LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "loss_mask_iou")
CRITERION = YOLACTCriterion(
    box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
    num_classes=NUM_CLASSES,
    min_mask_iou_area=0,
    loss_weights=dict.fromkeys(LOSSES, 1.0),
)


@settings(max_examples=60)
@given(
    seeds,
    st.tuples(*[st.sampled_from([0.0, 1e-30, 1.0, 100.0, 1e4, 1e8])] * 5),
    st.lists(ground_truths(32, NUM_CLASSES), min_size=1, max_size=3),
)
def test_losses_and_gradients_are_finite(postprocessing, seed, largest, gt_instances):
    """For any ground truth and predictions up to 1e8."""
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
        [_anchors(seed)],
        DensePredictions(logits, deltas, raw_coefficients.tanh()),
        raw_prototypes.relu(),
        sem_seg_logits,
        gt_instances,
        postprocessing.mask_iou_head,
    )
    assert set(losses) == set(LOSSES)
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values()), losses
    leaves = [logits, deltas, raw_coefficients, raw_prototypes, sem_seg_logits]
    leaves += postprocessing.mask_iou_head.parameters()
    for gradient in torch.autograd.grad(sum(losses.values()), leaves):
        assert gradient.isfinite().all()
