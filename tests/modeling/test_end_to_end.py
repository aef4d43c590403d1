"""What users of other detection libraries expect of any model: training and inference with inputs
of all kinds."""

import copy
from functools import partial

import pytest
import torch
from detectron2.structures import Boxes
from plain import assert_equal
from small_models import random_image, tiny_embedmask, tiny_yolact, training_input

YOLACT_LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}
EMBEDMASK_LOSSES = {"loss_cls", "loss_box_reg", "loss_centerness", "loss_mask"}
# How a model is built, its losses, and those of images without objects.
MODELS = {
    "yolact": (tiny_yolact, YOLACT_LOSSES, {"loss_sem_seg"}),
    "yolact++": (
        partial(tiny_yolact, "yolact_plus_shapes", MODEL__YOLACT__MASK_IOU__MIN_AREA=0),
        YOLACT_LOSSES | {"loss_mask_iou"},
        {"loss_sem_seg"},
    ),
    "yolact with negatives": (
        partial(tiny_yolact, MODEL__YOLACT__MIN_NEGATIVES_PER_IMAGE=5),
        YOLACT_LOSSES,
        {"loss_sem_seg", "loss_cls"},
    ),
    "modern yolact": (
        # Group norm needs more than one value in each of its 32 groups.
        partial(tiny_yolact, "yolact_modern_shapes", MODEL__YOLACT__HEAD_CONV_DIM=64),
        YOLACT_LOSSES,
        {"loss_sem_seg", "loss_cls"},
    ),
    "yolact of other parts": (
        partial(
            tiny_yolact,
            MODEL__YOLACT__CRITERION="ComposedCriterion",
            MODEL__YOLACT__ASSIGNER="atss",
            MODEL__YOLACT__CLS_LOSS_TYPE="varifocal",
            MODEL__YOLACT__BBOX_REG_LOSS_TYPE="ciou",
        ),
        YOLACT_LOSSES,
        {"loss_sem_seg", "loss_cls"},
    ),
    "embedmask": (tiny_embedmask, EMBEDMASK_LOSSES, {"loss_cls"}),
    "embedmask with smooth loss": (
        partial(tiny_embedmask, MODEL__EMBEDMASK__LOSS_SMOOTH_WEIGHT=0.1),
        EMBEDMASK_LOSSES | {"loss_smooth"},
        {"loss_cls"},
    ),
}
BOXES = [[4, 4, 40, 50], [30, 10, 90, 60], [60, 2, 70, 9]]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=["yolact", "yolact++", "modern yolact", "embedmask"])
def model(request):
    return MODELS[request.param][0]()


def from_detectron2(x):
    """Without gt_masks, as Detectron2's DatasetMapper returns images without objects."""
    x["instances"].remove("gt_masks")
    return x


# Six images, with which batch norm is not frozen.
MIXED = [
    training_input(BOXES),
    training_input([], 40, 30),
    training_input([[10, 5, 50, 90]], 96, 64),
] * 2
MANY = [training_input([[i % 60, i % 50, i % 60 + 30, i % 50 + 14] for i in range(500)])]
EMPTY = [training_input([]), from_detectron2(training_input([], 40, 30))]
CROWD = [training_input([[0, 0, 64, 64]], 64, 64, crowd=[True])]


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients(kind):
    """Objects have all losses, images without objects none of boxes and masks. The gradients of all
    parameters are finite, and none is missing, as `DistributedDataParallel` needs."""
    build, names, without_objects = MODELS[kind]
    model = build()
    for batch in (MIXED, MANY, EMPTY, CROWD):
        losses = model(batch)
        assert set(losses) == names and all(loss.isfinite() for loss in losses.values())
        not_zero = {name for name, loss in losses.items() if loss > 0}
        has_objects = batch is MIXED or batch is MANY
        expected = names if has_objects else without_objects
        # Where each object has one proposal, the smooth loss is 0.
        assert not_zero == expected or batch is MANY and expected - not_zero == {"loss_smooth"}
        model.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                if "conv_offset_mask" in name and has_objects:
                    assert parameter.grad.any(), name


def tensors(x):
    """The image and the fields of the ground truth of an input."""
    fields = {name: getattr(v, "tensor", v) for name, v in x["instances"].get_fields().items()}
    return {"image": x["image"], **fields}


def test_inputs_are_not_changed(model):
    inputs = [training_input(BOXES, crowd=[False, True, False]), training_input([], 40, 30)]
    before = copy.deepcopy([tensors(x) for x in inputs])
    model(inputs)
    model.eval()(inputs)
    assert_equal([tensors(x) for x in inputs], before)


def assert_usable(instances):
    """Check that detections are finite and in order."""
    scores = instances.scores
    assert instances.pred_boxes.tensor.isfinite().all()
    assert ((scores >= 0) & (scores <= 1)).all() and (scores.diff() <= 0).all()
    assert instances.pred_masks.shape == (len(scores), *instances.image_size)
    assert instances.get_fields().get("mask_scores", scores).isfinite().all()


@torch.no_grad()
def test_images_of_different_sizes_have_results_of_their_sizes(model):
    sizes = [(40, 30), (64, 96), (200, 7), (1, 1)]
    results = model.eval()([{"image": random_image(*size)} for size in sizes])
    for (height, width), result in zip(sizes, results):
        found = result["instances"]
        assert found.image_size == (height, width)
        boxes = found.pred_boxes.tensor
        assert ((boxes >= 0) & (boxes <= torch.tensor([width, height] * 2))).all()
        assert_usable(found)
    assert len(results[1]["instances"]) > 5


@pytest.mark.parametrize("box", [[30, 10, 30, 60], [30, 60, 90, 10], [30, 10, NAN, 60]])
def test_boxes_without_area_are_named(model, box):
    wrong = training_input(BOXES) | {"file_name": "a.jpg"}
    wrong["instances"].gt_boxes = Boxes(torch.tensor([BOXES[0], box, BOXES[2]]))
    message = rf"a.jpg: gt_boxes has \[{box[0]:.1f}, {box[1]:.1f}, {box[2]:.1f}, {box[3]:.1f}\]"
    with pytest.raises(ValueError, match=message):
        model([training_input(BOXES), wrong])


def has_usable_losses(losses):
    return bool(sum(losses.values()).isfinite())


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_images_that_are_not_finite(model, value):
    """The losses are not finite either, so that the trainer skips the batch."""
    x = training_input(BOXES)
    x["image"][:, 20, 20] = value
    assert not has_usable_losses(model([x]))
    with torch.no_grad():
        assert_usable(model.eval()([x])[0]["instances"])


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize(
    "kind, part",
    [
        ("yolact++", "head"),
        ("yolact++", "protonet"),
        ("modern yolact", "head"),
        ("embedmask", "head"),
    ],
)
def test_outputs_of_the_network_that_are_not_finite(kind, part, value):
    def spoil(module, args, output):
        if part == "protonet":
            return torch.full_like(output, value)
        return type(output)(*(torch.full_like(x, value) for x in output))

    model, x = MODELS[kind][0](), training_input(BOXES)
    getattr(model, part).register_forward_hook(spoil)
    assert not has_usable_losses(model([x]))
    with torch.no_grad():
        assert_usable(model.eval()([x])[0]["instances"])


@pytest.mark.parametrize("kind", ["yolact", "yolact++", "modern yolact", "embedmask"])
def test_autocast(kind):
    # Where P6 is one cell, the gradient of P7's weight is not initialised in PyTorch 2.14, in
    # bfloat16 on CPUs with instructions for it.
    model = MODELS[kind][0](**({} if kind == "embedmask" else {"size": 128}))
    expected, dtypes = model(MIXED), set()
    model.head.register_forward_pre_hook(lambda _, args: dtypes.add(args[0][0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(MIXED)
        with torch.no_grad():
            found = model.eval()(MIXED)[0]["instances"]
    assert dtypes == {torch.bfloat16}
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # Rounding moves cells of masks across the threshold, and changes which anchors learn.
        is_rough = name == "loss_mask_iou" or kind == "modern yolact"
        tolerance = 0.15 if is_rough else 0.03
        assert loss.item() == pytest.approx(expected[name].item(), rel=tolerance), name
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert_usable(found)
    assert found.pred_boxes.tensor.dtype == found.scores.dtype == torch.float32 and len(found) > 5
