import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import PolygonMasks
from small_models import random_image, tiny_embedmask, training_input

from yolact_d2 import model_zoo
from yolact_d2.modeling.embedmask import criterion
from yolact_d2.modeling.embedmask.criterion import smoothed
from yolact_d2.modeling.embedmask.targets import best_locations


@pytest.fixture
def model():
    return tiny_embedmask()


BOXES = [[4, 4, 40, 50], [30, 10, 90, 60], [60, 2, 70, 9]]


def test_crowd_regions_are_not_used(model):
    with_crowd = training_input([*BOXES, [10, 20, 50, 60]], crowd=[False] * 3 + [True])
    expected = model.train()([training_input(BOXES)])
    for name, loss in model([with_crowd]).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6)


def test_losses_of_a_batch_are_weighted_means_of_those_of_its_images(model, monkeypatch):
    """The weights are the normalisers: numbers of positive locations, sums of their centre-ness
    targets, images."""
    original, targets = criterion.centerness, []

    def spy(distances):
        targets.append(original(distances))
        return targets[-1]

    monkeypatch.setattr(criterion, "centerness", spy)
    inputs = [training_input(BOXES), training_input(BOXES[:1])]
    single = [model.train()([x]) for x in inputs]
    num_positives, sums = [len(x) for x in targets], [x.sum().item() for x in targets]
    assert num_positives[0] > num_positives[1] > 0
    for name, loss in model(inputs).items():
        weights = {"loss_mask": [1, 1], "loss_box_reg": sums}.get(name, num_positives)
        mean = np.average([losses[name].item() for losses in single], weights=weights)
        assert loss.item() == pytest.approx(mean, rel=1e-4), name


def test_small_images_of_a_batch_train_as_if_they_were_padded_before(model):
    small, large = training_input(BOXES[:1], 60, 50), training_input(BOXES)
    padded = training_input(BOXES[:1])
    padded["image"][:] = model.pixel_mean
    padded["image"][:, :60, :50] = small["image"]
    expected = model([padded, large])
    for name, loss in model([small, large]).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_smoothed_equals_the_loop():
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        q, m = torch.rand(2, 20, 3, generator=generator)
        assigned = torch.randint(-1, 4, (20,), generator=generator)
        ious = torch.rand(20, generator=generator)
        best, has_location = best_locations(assigned, ious, 5)
        mean_q, mean_m, distances = smoothed(q, m, assigned, ious, best, has_location)
        expected = 0.0
        for g in range(5):
            own = [i for i in range(20) if assigned[i] == g]
            own = [i for i in own if ious[i] > 0.5 or i == best[g]]
            if own:
                torch.testing.assert_close(mean_q[g], q[own].mean(dim=0))
                torch.testing.assert_close(mean_m[g], m[own].mean(dim=0))
                for x in (q, m):
                    expected += (x[own] - x[own].mean(dim=0)).square().sum().item()
        assert distances.item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_outputs_have_the_resolution_that_is_asked_for(model):
    image = random_image(64, 96)
    plain, large = model.eval()(
        [{"image": image}, {"image": image.clone(), "height": 128, "width": 96}]
    )
    plain, large = plain["instances"], large["instances"]
    assert plain.image_size == (64, 96) and large.image_size == (128, 96)
    assert large.pred_masks.shape[1:] == (128, 96) and len(plain) == len(large) > 0
    scaled = plain.pred_boxes.tensor * torch.tensor([1, 2, 1, 2])
    torch.testing.assert_close(scaled, large.pred_boxes.tensor)
    assert (plain.scores.diff() <= 0).all()


@torch.no_grad()
def test_thresholds_and_limits():
    image = [{"image": random_image(64, 96)}]
    whole = tiny_embedmask().eval()(image)[0]["instances"]
    median = whole.scores.median().item()
    above = tiny_embedmask(MODEL__EMBEDMASK__SCORE_THRESH_TEST=median).eval()(image)[0]["instances"]
    assert torch.equal(above.scores, whole.scores[whole.scores >= median])
    few = tiny_embedmask(TEST__DETECTIONS_PER_IMAGE=3).eval()(image)[0]["instances"]
    assert torch.equal(few.scores, whole.scores[:3])


def test_wrong_inputs_and_configs_are_named(model):
    wrong = training_input(BOXES)
    wrong["instances"].gt_masks = PolygonMasks([[[0, 0, 9, 0, 9, 9]]] * 3)
    for inputs, message in (
        ([{"image": random_image(8, 8)}], "no ground truth"),
        ([wrong], "set INPUT.MASK_FORMAT to 'bitmask'"),
        ([{"image": torch.zeros(4, 8, 8)}], r"got \(4, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.train()(inputs)
    for key, value, message in (
        ("MODEL__MASK_ON", False, "EmbedMask always predicts masks"),
        ("MODEL__EMBEDMASK__NUM_CLASSES", 0, "EMBEDMASK.NUM_CLASSES is 0, not 1"),
        ("MODEL__EMBEDMASK__EMBED_DIM", 2, "EMBED_DIM is 2, not 3"),
        ("MODEL__EMBEDMASK__NUM_CONVS", 0, "NUM_CONVS is 0, not 1"),
        ("MODEL__EMBEDMASK__INIT_MARGIN", 0.0, "INIT_MARGIN is 0.0, not above 0"),
        ("MODEL__EMBEDMASK__PRIOR_PROB", 1.0, "PRIOR_PROB is 1.0, not between"),
        ("MODEL__FPN__OUT_CHANNELS", 48, "FPN.OUT_CHANNELS is 48, not a multiple of 32"),
        (
            "MODEL__EMBEDMASK__IN_FEATURES",
            ["p3", "p9"],
            r"EMBEDMASK.IN_FEATURES: no level \['p9'\]",
        ),
        ("MODEL__EMBEDMASK__MASK_THRESH_TEST", 0.001, "MASK_THRESH_TEST is 0.001, not in 0.007..1"),
        ("MODEL__EMBEDMASK__SIZES_OF_INTEREST", [8], "has 1 values; 3 levels"),
        ("MODEL__ANCHOR_GENERATOR__OFFSET", 0.0, "not the middle of its cell"),
        (
            "MODEL__EMBEDMASK__IN_FEATURES",
            ["p4", "p5", "p3"],
            "begins with stride 16, not 8",
        ),
        ("MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS", [[1.0, 2.0]], "one location a cell"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_embedmask(**{key: value})


def test_training_starts_from_the_published_biases_and_scales():
    cfg = model_zoo.get_config("embedmask_R_50_FPN_1x", opts=["MODEL.DEVICE", "cpu"])
    head = build_model(cfg).head
    for bias, value in ((head.cls_score.bias, -4.59512), (head.proposal_margin_pred.bias, -1.7528)):
        torch.testing.assert_close(bias, torch.full_like(bias, value), rtol=0, atol=1e-4)
    for scale in (head.position_scale, *head.scales, *head.margin_scales):
        assert scale.scale.tolist() == [1]
