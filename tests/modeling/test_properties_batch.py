"""Results depend neither on the order of the images of a batch nor on what else is in it."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import tiny_yolact, with_double_network
from strategies import ground_truths, images, seeds

from yolact_d2.modeling import DensePredictions, MaskIoUHead
from yolact_d2.modeling.criterion import YOLACTCriterion

SIZE = 64


@pytest.fixture(scope="module", params=["yolact_shapes", "yolact_plus_shapes"])
def model(request):
    return tiny_yolact(request.param).eval()


@pytest.fixture(scope="module", params=["yolact_shapes", "yolact_plus_shapes"])
def exact_model(request):
    """See :func:`with_double_network`."""
    return with_double_network(tiny_yolact(request.param)).eval()


@st.composite
def _batches(draw, max_images=4):
    """Some images, and the indices of some of them in another order."""
    batch = draw(st.lists(images(max_side=60), min_size=1, max_size=max_images))
    order = draw(st.permutations(range(len(batch))))
    return [{"image": x} for x in batch], order[: draw(st.integers(1, len(batch)))]


@settings(max_examples=10)
@given(_batches())
def test_on_a_cpu_results_are_the_same_to_the_last_bit(model, drawn):
    batch, order = drawn
    with torch.no_grad():
        expected = model(batch)
        found = model([batch[i] for i in order])
    for i, result in zip(order, found):
        fields = result["instances"].get_fields()
        for name, value in expected[i]["instances"].get_fields().items():
            value, other = (x.tensor if name == "pred_boxes" else x for x in (value, fields[name]))
            assert torch.equal(value, other), name


@settings(max_examples=12)
@given(_batches())
def test_results_of_one_batch_are_the_same_up_to_rounding(exact_model, drawn):
    """As GPUs do it."""
    batch, order = drawn
    with torch.no_grad():
        expected = exact_model.forward_batch(batch)
        found = exact_model.forward_batch([batch[i] for i in order])
    for i, result in zip(order, found):
        result, other = result["instances"], expected[i]["instances"]
        assert len(result) > 0
        assert torch.equal(result.pred_classes, other.pred_classes)
        side = max(result.image_size)
        torch.testing.assert_close(
            result.pred_boxes.tensor, other.pred_boxes.tensor, rtol=0, atol=1e-5 * side
        )
        torch.testing.assert_close(result.scores, other.scores, rtol=0, atol=1e-6)
        assert (result.pred_masks != other.pred_masks).float().mean() < 1e-4


NUM_ANCHORS, NUM_CLASSES, NUM_PROTOTYPES = 40, 3, 4
LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "loss_mask_iou")
CRITERION = YOLACTCriterion(
    box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
    num_classes=NUM_CLASSES,
    max_mask_positives=0,
    min_mask_iou_area=3,
    loss_weights=dict.fromkeys(LOSSES, 1.0),
)
HEAD = MaskIoUHead(conv_dims=[4], num_classes=NUM_CLASSES, mask_size=16)


def _criterion_arguments(num_images, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(num_images, *shape, generator=generator)

    corners = torch.rand(NUM_ANCHORS, 2, 2, generator=generator)
    anchors = torch.cat([corners.amin(dim=1) - 0.05, corners.amax(dim=1)], dim=1)
    predictions = DensePredictions(
        normal(NUM_ANCHORS, NUM_CLASSES + 1) * 3,
        normal(NUM_ANCHORS, 4),
        normal(NUM_ANCHORS, NUM_PROTOTYPES).tanh(),
    )
    return Boxes(anchors), predictions, normal(NUM_PROTOTYPES, 16, 16).relu(), normal(3, 8, 8)


@torch.no_grad()
def _losses(anchors, predictions, prototypes, logits, gt_instances, chosen):
    """The losses of the chosen images, and the number of their positives."""
    gt_instances = [gt_instances[i] for i in chosen]
    chosen = torch.tensor(chosen)
    predictions = DensePredictions(*(x[chosen] for x in predictions))
    found, label_anchors = [], CRITERION.label_anchors
    CRITERION.label_anchors = lambda *args: found.append(label_anchors(*args)) or found[-1]
    try:
        losses = CRITERION(
            anchors, predictions, prototypes[chosen], logits[chosen], gt_instances, HEAD
        )
    finally:
        del CRITERION.label_anchors
    return losses, sum(len(targets.positives) for targets in found)


_ground_truths = st.lists(ground_truths(SIZE, NUM_CLASSES), min_size=1, max_size=4)


@settings(max_examples=40)
@given(_ground_truths, st.randoms(use_true_random=False), seeds)
def test_losses_do_not_depend_on_the_order(gt_instances, random, seed):
    arguments = (*_criterion_arguments(len(gt_instances), seed), gt_instances)
    order = list(range(len(gt_instances)))
    expected, num_positives = _losses(*arguments, order)
    random.shuffle(order)
    found, found_positives = _losses(*arguments, order)
    assert found_positives == num_positives
    for name in LOSSES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(_ground_truths, seeds)
def test_each_image_adds_its_own_losses(gt_instances, seed):
    """What else is in the batch counts in the divisor only: that of positives, or of images."""
    arguments = (*_criterion_arguments(len(gt_instances), seed), gt_instances)
    num_images = len(gt_instances)
    together, num_positives = _losses(*arguments, list(range(num_images)))
    alone = [_losses(*arguments, [i]) for i in range(num_images)]
    assert num_positives == sum(num for _, num in alone)
    for name in LOSSES:
        if name == "loss_sem_seg":
            expected = sum(losses[name] for losses, _ in alone) / num_images
        else:
            expected = sum(losses[name] * max(num, 1) for losses, num in alone)
            expected = expected / max(num_positives, 1)
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_images", [3, 6], ids=["batch norm frozen", "batch norm trained"])
@settings(max_examples=2)
@given(data=st.data())
def test_training_does_not_depend_on_the_order(exact_model, num_images, data):
    """Losses and gradients."""
    batch = [
        {
            "image": torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i)) * 255,
            "instances": data.draw(ground_truths(SIZE, 4)),
        }
        for i in range(num_images)
    ]
    order = data.draw(st.permutations(range(num_images)))
    exact_model.train()
    found = []
    for images_in_order in (batch, [batch[i] for i in order]):
        exact_model.zero_grad()
        losses = exact_model(images_in_order)
        sum(losses.values()).backward()
        found.append((losses, [x.grad for x in exact_model.parameters() if x.grad is not None]))
    exact_model.eval()
    (losses, gradients), (expected_losses, expected_gradients) = found
    for name in losses:
        torch.testing.assert_close(losses[name], expected_losses[name], rtol=1e-4, atol=1e-5)
    total = torch.stack([x.norm() for x in expected_gradients]).norm()
    for x, expected in zip(gradients, expected_gradients):
        assert (x - expected).norm() <= 1e-4 * total
