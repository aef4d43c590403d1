import itertools
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.visualizer import Visualizer
from small_models import tiny_yolact
from torch import nn
from torch.nn import functional as F

from yolact_d2.modeling import NMS_REGISTRY, DensePredictions
from yolact_d2.modeling.yolact.multi_scale import training_sides

LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}
CONFIGS = ["yolact_shapes", "yolact_plus_shapes"]
ALL_NMS = ["fast_nms", "cross_class_fast_nms", "batched_nms"]


@pytest.fixture(params=CONFIGS)
def model(request):
    return tiny_yolact(request.param, size=64, MODEL__YOLACT__MASK_IOU__MIN_AREA=0)


def random_image(height, width):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255


def training_input(boxes, classes):
    """Noise, and objects that fill their boxes."""
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    gt = Instances((64, 64))
    gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes, dtype=torch.int64)
    gt.gt_masks = BitMasks(masks)
    return {"image": random_image(64, 64), "instances": gt}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_detections_and_losses_of_the_cpu(model):
    inputs = [training_input([[4, 4, 30, 40], [20, 30, 60, 62]], [0, 2])]
    expected = model.train()(inputs), model.eval()(inputs)[0]["instances"]
    losses, instances = model.cuda().train()(inputs), model.eval()(inputs)[0]["instances"]
    for key, loss in expected[0].items():
        assert losses[key].item() == pytest.approx(loss.item(), rel=1e-3)
    torch.testing.assert_close(instances.scores.cpu(), expected[1].scores, atol=1e-3, rtol=0)


def test_layers_start_xavier_uniform_with_zero_biases(plus_shapes_cfg):
    """All but those of the backbone below the pyramid."""
    plus_shapes_cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [16, 32]
    torch.manual_seed(0)
    model = build_model(plus_shapes_cfg)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    convs = {name: conv for name, conv in convs.items() if "bottom_up" not in name}
    assert len(convs) == 8 + 5 + 4 + 3 + 1
    for conv in convs.values():
        out_channels, in_channels, side, _ = conv.weight.shape
        bound = math.sqrt(6 / (side**2 * (in_channels + out_channels)))
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        # The variance of a uniform distribution; a few hundred weights determine it to 20 %.
        assert 0.8 < conv.weight.var().item() / (bound**2 / 3) < 1.2
        assert not conv.bias.any()


class TestTraining:
    def test_images_of_other_sizes_train_as_if_they_were_resized_before(self, model):
        resized = training_input([[8, 16, 56, 64], [24, 0, 64, 24]], [1, 3])
        gt = resized["instances"]
        image = random_image(128, 192)
        resized["image"] = F.interpolate(image[None], (64, 64), mode="bilinear")[0]
        original = Instances((128, 192), gt_classes=gt.gt_classes, gt_boxes=gt.gt_boxes.clone())
        original.gt_boxes.scale(3, 2)
        original.gt_masks = BitMasks(
            gt.gt_masks.tensor.repeat_interleave(2, dim=1).repeat_interleave(3, dim=2)
        )
        expected = model([resized] * 6)
        for name, loss in model([resized, {"image": image, "instances": original}] * 3).items():
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name

    def test_wrong_inputs_are_errors(self):
        model = tiny_yolact()
        x = training_input([[10, 10, 60, 60]], [1])
        with pytest.raises(ValueError, match="no ground truth"):
            model([{"image": x["image"]}])
        x["instances"].gt_masks = PolygonMasks([[np.array([10, 10, 60, 10, 60, 60.0])]])
        with pytest.raises(ValueError, match="INPUT.MASK_FORMAT"):
            model([x])
        with pytest.raises(ValueError, match=r"got \(4, 9, 9\)"):
            model.eval()([{"image": torch.zeros(4, 9, 9)}])


class TestMultiScale:
    @pytest.mark.parametrize("config", CONFIGS)
    def test_losses_are_those_of_models_of_the_sides(self, config):
        sizes = [[10, 14], [20, 28], [28, 40], [40, 56], [56, 70]]  # of anchors, at S = 64
        opts = {"MODEL__YOLACT__MASK_IOU__MIN_AREA": 0, "MODEL__ANCHOR_GENERATOR__SIZES": sizes}
        model = tiny_yolact(config, size=64, INPUT__MULTI_SCALE=0.5, **opts)
        x = training_input([[4, 4, 30, 40], [20, 30, 60, 62]], [0, 2])
        expected = {}
        for side in (32, 64, 96):
            opts["MODEL__ANCHOR_GENERATOR__SIZES"] = [[s * side / 64 for s in y] for y in sizes]
            other = tiny_yolact(config, size=side, **opts)
            other.load_state_dict(model.state_dict())
            expected[side] = {k: v.item() for k, v in other([x, x]).items()}
        sides = []
        for seed in range(8):
            torch.manual_seed(seed)
            side = model.preprocess_image([x, x]).shape[-1]
            torch.manual_seed(seed)  # as the trainer does: the same side again
            losses = {k: v.item() for k, v in model([x, x]).items()}
            assert losses == pytest.approx(expected[side], rel=1e-4)
            sides.append(side)
        assert {*sides} == {32, 64, 96}

    def test_all_sides_are_drawn_but_only_in_training(self):
        model, x = tiny_yolact(size=80, INPUT__MULTI_SCALE=0.5), {"image": random_image(80, 80)}
        torch.manual_seed(0)
        shapes = [model.preprocess_image([x] * 2).shape for _ in range(100)]
        assert {shape[:2] for shape in shapes} == {(2, 3)}
        counts = {side: shapes.count((2, 3, side, side)) for side in (64, 96)}
        assert sum(counts.values()) == 100 and min(counts.values()) > 35
        model.eval()
        assert {model.preprocess_image([x]).shape for _ in range(20)} == {(1, 3, 80, 80)}

    def test_without_it_no_random_number_is_drawn(self, model):
        state = torch.get_rng_state()
        model.preprocess_image([{"image": random_image(64, 64)}])
        assert torch.equal(torch.get_rng_state(), state)

    def test_sides_are_multiples_of_32_in_the_range(self):
        for size, f in itertools.product((64, 160, 550, 640), (0.1, 0.2, 0.5, 0.8, 0.95)):
            low, high = round(size * 100 * (1 - f)), round(size * 100 * (1 + f))
            expected = [s for s in range(32, 2000, 32) if low <= 100 * s <= high]
            assert training_sides(size, f) == expected
        assert training_sides(550, 0.0) == [550]

    def test_wrong_values_are_named(self):
        for value in (-0.1, 1.0, float("nan"), 0.01):
            with pytest.raises(ValueError, match=f"INPUT.MULTI_SCALE is {value}"):
                tiny_yolact(size=80, INPUT__MULTI_SCALE=value)
        tiny_yolact("yolact_plus_shapes", size=64, MODEL__YOLACT__MASK_IOU__CONV_DIMS=[4, 4, 4])
        with pytest.raises(ValueError, match="MODEL.YOLACT.MASK_IOU.CONV_DIMS"):
            tiny_yolact(
                "yolact_plus_shapes",
                size=64,
                MODEL__YOLACT__MASK_IOU__CONV_DIMS=[4, 4, 4],
                INPUT__MULTI_SCALE=0.5,
            )


class TestInference:
    @pytest.mark.parametrize("height, width", [(1, 1), (37, 500), (1080, 1920)])
    def test_predictor_and_visualizer_at_any_size(self, shapes_cfg, height, width):
        shapes_cfg.INPUT.IMAGE_SIZE = 128
        # Without a score threshold, so that an untrained model finds something.
        shapes_cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
        shapes_cfg.TEST.DETECTIONS_PER_IMAGE = 20
        image = np.random.RandomState(0).randint(0, 255, (height, width, 3), dtype=np.uint8)
        instances = DefaultPredictor(shapes_cfg)(image)["instances"]
        assert instances.image_size == (height, width)
        assert instances.pred_masks.shape == (20, height, width)
        assert instances.pred_masks.dtype == torch.bool
        boxes = instances.pred_boxes.tensor
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (instances.scores[:-1] >= instances.scores[1:]).all()
        drawing = Visualizer(image, MetadataCatalog.get("shapes_val"))
        drawing.draw_instance_predictions(instances[:10])
        assert drawing.output.get_image().shape == image.shape

    def test_grayscale_images_are_repeated(self, model):
        gray = random_image(50, 70)[:1]
        got, expected = (model.eval()([{"image": x}])[0] for x in (gray, gray.repeat(3, 1, 1)))
        assert torch.equal(got["instances"].scores, expected["instances"].scores)
        assert torch.equal(got["instances"].pred_masks, expected["instances"].pred_masks)
        colour = random_image(40, 60)
        batch = model.preprocess_image([{"image": x} for x in (gray, colour)])
        expected = model.preprocess_image([{"image": x} for x in (gray.repeat(3, 1, 1), colour)])
        assert torch.equal(batch, expected)

    def test_the_threshold_of_detectron2s_demo_is_used(self):
        for opts, expected in (
            ({}, 0.0),
            ({"MODEL__RETINANET__SCORE_THRESH_TEST": 0.5}, 0.5),
            ({"MODEL__YOLACT__SCORE_THRESH_TEST": 0.2}, 0.2),
        ):
            assert tiny_yolact(**opts).test_score_thresh == expected

    def test_score_threshold_only_drops_detections(self, model):
        x = {"image": random_image(90, 120)}
        everything = model.eval()([x])[0]["instances"]
        model.test_score_thresh = everything.scores[10].item()
        found = model([x])[0]["instances"]
        expected = everything[everything.scores >= everything.scores[10]]
        assert 0 < len(found) < len(everything)
        assert torch.equal(found.pred_masks, expected.pred_masks)
        assert torch.equal(found.scores, expected.scores)

    @pytest.mark.parametrize("nms", ALL_NMS)
    def test_boxes_outside_the_image_do_not_count_towards_the_maximum(self, model, nms):
        boxes = [
            [-0.3, 0.2, -0.1, 0.4], [1.1, 0.2, 1.3, 0.4], [0.2, -0.3, 0.4, 0.0],
            [0.2, 1.0, 0.4, 1.3], [0.5, 0.5, 0.5, 0.9], [0.5, 0.9, 0.9, 0.9],
            [-0.1, 0.5, 0.2, 0.9], [0.3, 0.6, 0.6, 1.2], [0.1, 0.1, 0.3, 0.3], [0.6, 0.1, 0.9, 0.3],
        ]  # fmt: skip
        num, num_classes = len(boxes), model.sem_seg_conv.out_channels
        logits = torch.full((num, num_classes + 1), -9.0)
        logits[:, 1] = torch.arange(num, 0, -1)
        predictions = DensePredictions(logits, torch.zeros(num, 4), torch.ones(num, 8) / 8)
        model.nms, model.max_detections_per_image = NMS_REGISTRY.get(nms), 3
        found = model.eval().inference_single_image(
            Boxes(torch.tensor(boxes)), predictions, torch.ones(8, 16, 16), (50, 200)
        )
        expected = [[0, 25, 40, 45], [60, 30, 120, 50], [20, 5, 60, 15]]
        torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor(expected).float())
        torch.testing.assert_close(found.scores, logits[6:9].softmax(dim=1)[:, 1])
        assert found.pred_classes.tolist() == [1, 1, 1]
        for mask, (x1, y1, x2, y2) in zip(found.pred_masks, expected):
            assert mask[y1:y2, x1:x2].all()
        assert all(len(value) == 3 for value in found.get_fields().values())

    def test_no_detections(self, model):
        model.eval().test_anchor_score_thresh = 1.0
        instances = model([{"image": torch.zeros(3, 40, 60)}])[0]["instances"]
        assert len(instances) == 0
        assert instances.pred_masks.shape == (0, 40, 60)
        assert not model.mask_iou_head or instances.mask_scores.shape == (0,)


def test_without_mask_iou_head_there_are_no_mask_scores():
    model = tiny_yolact("yolact_plus_shapes", MODEL__YOLACT__MASK_IOU__ENABLED=False)
    assert not any("mask_iou" in key for key in model.state_dict())
    assert set(model([training_input([[10, 10, 60, 60]], [1])])) == LOSSES
    instances = model.eval()([{"image": random_image(40, 60)}])[0]["instances"]
    assert not instances.has("mask_scores")
