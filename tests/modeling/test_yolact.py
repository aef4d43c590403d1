import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.visualizer import Visualizer
from torch.utils._python_dispatch import TorchDispatchMode

from yolact_d2 import optimize_for_inference
from yolact_d2.modeling import yolact
from yolact_d2.modeling.masks import resize_masks

LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}


@pytest.fixture
def cfg(shapes_cfg):
    shapes_cfg.merge_from_list(["INPUT.IMAGE_SIZE", 128, "MODEL.YOLACT.MAX_MASK_POSITIVES", 0])
    return shapes_cfg


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def ground_truth(boxes, classes, size=128, crowd=None):
    """Objects that fill their boxes."""
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    gt = Instances((size, size))
    gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes, dtype=torch.int64)
    gt.gt_masks = BitMasks(masks)
    if crowd is not None:
        gt.gt_iscrowd = torch.tensor(crowd, dtype=torch.bool)
    return gt


def image_of(gt, size=128, seed=0):
    """Grey noise in which each class has its colour."""
    rng = np.random.RandomState(seed)
    image = rng.uniform(90, 130, (3, size, size)).astype(np.float32)
    colours = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)]
    for mask, c in zip(gt.gt_masks.tensor.numpy(), gt.gt_classes.tolist()):
        image[:, mask] = np.array(colours[c])[:, None] + rng.uniform(-10, 10, (3, mask.sum()))
    return torch.from_numpy(image)


def training_input(boxes, classes, size=128, **kwargs):
    gt = ground_truth(boxes, classes, size, **kwargs)
    return {"image": image_of(gt, size), "instances": gt}


class TestTraining:
    def test_an_image_is_learnt_by_heart(self, model):
        x = training_input([[10, 12, 60, 52], [70, 64, 118, 120], [24, 80, 48, 110]], [0, 1, 2])
        # Six copies, or batch norm would be frozen, which cannot learn from scratch.
        batch = [x] * 6
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        history = []
        for _ in range(60):
            losses = model(batch)
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            history.append(total.item())
        assert history[-1] < 0.25 * history[0]

        model.eval()
        with torch.no_grad():
            found = model([{"image": x["image"]}])[0]["instances"]
            fast = optimize_for_inference(model)([{"image": x["image"]}])[0]["instances"]
        for i in range(len(x["instances"])):
            truth = x["instances"].gt_masks.tensor[i]
            same_class = found.pred_classes == x["instances"].gt_classes[i]
            masks = found.pred_masks[same_class]
            iou = (masks & truth).sum(dim=(1, 2)) / (masks | truth).sum(dim=(1, 2))
            assert iou[0] > 0.75
            assert found.scores[same_class][0] > 0.5

        # The optimised model finds the same.
        sure = found[found.scores > 0.3]
        box_iou = pairwise_iou(sure.pred_boxes, fast.pred_boxes)
        both = (sure.pred_masks[:, None] & fast.pred_masks).sum(dim=(2, 3))
        mask_iou = both / (sure.pred_masks[:, None] | fast.pred_masks).sum(dim=(2, 3)).clamp(min=1)
        same_class = sure.pred_classes[:, None] == fast.pred_classes
        assert ((box_iou >= 0.9) & (mask_iou >= 0.9) & same_class).any(dim=1).all()

    def test_losses_are_finite_and_reach_every_parameter(self, model):
        losses = model([training_input([[10, 10, 60, 60]], [1])] * 6)
        assert set(losses) == LOSSES
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name

    @pytest.mark.parametrize("with_masks_field", [True, False])
    def test_batch_without_objects(self, model, with_masks_field):
        x = training_input([], [], crowd=[])
        if not with_masks_field:
            x["instances"].remove("gt_masks")
            x["instances"].remove("gt_iscrowd")
        losses = model([x] * 2)
        assert losses["loss_cls"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
        assert losses["loss_sem_seg"].isfinite()
        sum(losses.values()).backward()

    def test_crowds_are_no_targets(self, model):
        with_crowd = training_input([[10, 10, 60, 60], [64, 0, 128, 128]], [1, 2], crowd=[0, 1])
        alone = {**with_crowd, "instances": with_crowd["instances"][:1]}
        got, expected = model([with_crowd]), model([alone])
        for name in ("loss_box_reg", "loss_mask", "loss_sem_seg"):
            assert got[name].item() == pytest.approx(expected[name].item())

    def test_losses_under_autocast_are_close_to_float32(self, model):
        batch = [training_input([[10, 10, 60, 60], [50, 60, 120, 90]], [1, 3])] * 6
        expected = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(batch)
        for name in LOSSES:
            assert got[name].dtype == torch.float32
            assert got[name].item() == pytest.approx(expected[name].item(), rel=0.1)
        sum(got.values()).backward()

    def test_wrong_image_size_is_an_error(self, model):
        x = training_input([[10, 10, 60, 60]], [1])
        x["image"] = x["image"][:, :100]
        with pytest.raises(ValueError, match=r"128 x 128 \(INPUT.IMAGE_SIZE\), got \(100, 128\)"):
            model([x])

    def test_polygon_masks_are_an_error(self, model):
        x = training_input([[10, 10, 60, 60]], [1])
        x["instances"].gt_masks = PolygonMasks([[np.array([10, 10, 60, 10, 60, 60.0])]])
        with pytest.raises(ValueError, match="INPUT.MASK_FORMAT"):
            model([x])

    def test_missing_ground_truth_is_an_error(self, model):
        with pytest.raises(ValueError, match="no ground truth"):
            model([{"image": torch.zeros(3, 128, 128)}])


@pytest.fixture
def predictor(cfg):
    """Untrained, with the anchor filter off so that it finds something."""
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    return DefaultPredictor(cfg)


class TestInference:
    @pytest.mark.parametrize(
        "height, width", [(1, 1), (37, 500), (427, 640), (2160, 3840), (128, 128)]
    )
    def test_predictor_and_visualizer_at_any_size(self, predictor, cfg, height, width):
        cfg.TEST.DETECTIONS_PER_IMAGE = 20
        predictor = DefaultPredictor(cfg)
        image = np.random.RandomState(0).randint(0, 255, (height, width, 3), dtype=np.uint8)
        instances = predictor(image)["instances"]
        assert instances.image_size == (height, width)
        assert len(instances) == 20
        assert instances.pred_masks.shape == (20, height, width)
        assert instances.pred_masks.dtype == torch.bool
        boxes = instances.pred_boxes.tensor
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (instances.scores[:-1] >= instances.scores[1:]).all()
        drawing = Visualizer(image, MetadataCatalog.get("shapes_val"))
        drawing.draw_instance_predictions(instances[:10])
        assert drawing.output.get_image().shape == image.shape

    def test_grey_image_is_three_equal_channels(self, predictor):
        grey = np.random.RandomState(0).randint(0, 255, (50, 70, 1), dtype=np.uint8)
        got = predictor(grey)["instances"]
        expected = predictor(np.repeat(grey, 3, axis=2))["instances"]
        assert torch.equal(got.scores, expected.scores)
        assert torch.equal(got.pred_masks, expected.pred_masks)

    def test_four_channels_are_an_error(self, model):
        with pytest.raises(ValueError, match=r"got \(4, 9, 9\)"):
            model.eval()([{"image": torch.zeros(4, 9, 9)}])

    def test_masks_stay_in_their_boxes(self, predictor):
        image = np.random.RandomState(0).randint(0, 255, (128, 128, 3), dtype=np.uint8)
        instances = predictor(image)["instances"]
        # A margin of one prototype cell, and what the bilinear resize adds to it.
        margin = 2 * 128 / 32
        for box, mask in zip(instances.pred_boxes.tensor, instances.pred_masks):
            rows, columns = mask.nonzero(as_tuple=True)
            if len(rows):
                assert columns.min() >= box[0] - margin and columns.max() <= box[2] + margin
                assert rows.min() >= box[1] - margin and rows.max() <= box[3] + margin

    def test_score_threshold_only_drops(self, cfg, predictor):
        image = np.random.RandomState(0).randint(0, 255, (90, 120, 3), dtype=np.uint8)
        everything = predictor(image)["instances"]
        predictor.model.test_score_thresh = everything.scores[10].item()
        some = predictor(image)["instances"]
        expected = everything[everything.scores >= everything.scores[10]]
        assert 0 < len(some) < len(everything)
        assert torch.equal(some.pred_masks, expected.pred_masks)
        assert torch.equal(some.scores, expected.scores)

    def test_nothing_found(self, predictor):
        predictor.model.test_anchor_score_thresh = 1.0
        instances = predictor(np.zeros((40, 60, 3), dtype=np.uint8))["instances"]
        assert len(instances) == 0
        assert instances.pred_masks.shape == (0, 40, 60)

    def test_images_of_a_batch_do_not_mix(self, model):
        model.eval()
        model.test_anchor_score_thresh = 0.0
        images = [torch.rand(3, 40, 60) * 255, torch.rand(3, 200, 90) * 255]
        inputs = [{"image": x} for x in images]
        with torch.no_grad():
            together = model.forward_batch(inputs)
            alone = [model([x])[0] for x in inputs]
        for a, b in zip(together, alone):
            a, b = a["instances"], b["instances"]
            torch.testing.assert_close(a.scores, b.scores)
            assert (a.pred_masks == b.pred_masks).float().mean() > 0.999

    def test_on_a_cpu_images_go_through_the_network_one_by_one_channels_last(self, model):
        seen = []
        model.backbone.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
        results = model.eval()([{"image": torch.rand(3, 40, 60)}, {"image": torch.rand(3, 30, 20)}])
        assert [x["instances"].image_size for x in results] == [(40, 60), (30, 20)]
        assert [len(x) for x in seen] == [1, 1]
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)

    def test_output_size_is_the_one_asked_for(self, model):
        x = {"image": torch.zeros(3, 40, 60), "height": 80, "width": 30}
        assert model.eval()([x])[0]["instances"].image_size == (80, 30)

    def test_training_parts_do_not_run(self, model):
        def fail(*args):
            raise AssertionError("ran at inference")

        model.sem_seg_conv.register_forward_hook(fail)
        model.criterion.register_forward_hook(fail)
        model.eval()([{"image": torch.zeros(3, 40, 60)}])

    def test_a_gpu_is_waited_for_three_times_an_image(self, model, monkeypatch):
        """For the candidates, for what NMS leaves, and for what is above the score threshold."""
        model.eval()
        # As on a GPU.
        monkeypatch.setattr(yolact, "paste_masks", lambda m, _, size: resize_masks(m, size))
        model.test_anchor_score_thresh = 0.0
        with torch.no_grad(), Waits() as waits:
            instances = model([{"image": torch.rand(3, 40, 60)}])[0]["instances"]
        assert len(instances) > 0
        assert len(waits.ops) == 3, waits.ops


class Waits(TorchDispatchMode):
    """Records the operations that need values of a tensor, for which a GPU must be waited for."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        # A few numbers on their way to the device.
        copied = name in ("lift_fresh", "_to_copy") and args[0].numel() <= 16
        if name in ("nonzero", "masked_select", "_local_scalar_dense") or by_mask or copied:
            self.ops.append(name)
        return func(*args, **(kwargs or {}))


class TestPlus:
    @pytest.fixture
    def model(self, plus_shapes_cfg):
        plus_shapes_cfg.MODEL.YOLACT.MASK_IOU.MIN_AREA = 0
        plus_shapes_cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
        torch.manual_seed(0)
        return build_model(plus_shapes_cfg)

    def test_losses_reach_every_parameter(self, model):
        losses = model([training_input([[10, 10, 90, 90]], [1], size=160)] * 6)
        assert set(losses) == {*LOSSES, "loss_mask_iou"}
        assert losses["loss_mask_iou"] > 0
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        offsets = model.backbone.bottom_up.res4[0].conv2.conv_offset_mask
        assert offsets.weight.grad.any() and offsets.bias.grad.any()

    def test_losses_under_autocast_are_close_to_float32(self, model):
        batch = [training_input([[10, 10, 60, 60], [50, 60, 120, 90]], [1, 3], size=160)] * 6
        expected = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(batch)
        for name, loss in expected.items():
            assert got[name].dtype == torch.float32
            assert got[name].item() == pytest.approx(loss.item(), rel=0.1)
        sum(got.values()).backward()

    def test_mask_scores_are_scores_times_predicted_ious_of_the_soft_masks(self, model):
        model.eval()
        seen = {}
        model.mask_iou_head.register_forward_hook(lambda m, x, out: seen.update(x=x, ious=out))
        with torch.no_grad():
            instances = model([{"image": torch.rand(3, 40, 60) * 255}])[0]["instances"]
        masks, classes = seen["x"]
        assert torch.equal(classes, instances.pred_classes)
        assert masks.shape == (len(instances), 40, 40)
        assert 0 <= masks.min() and masks.max() <= 1 and ((masks > 0.1) & (masks < 0.9)).any()
        assert seen["ious"].any()
        torch.testing.assert_close(instances.mask_scores, instances.scores * seen["ious"])
        assert (instances.scores[:-1] >= instances.scores[1:]).all()

    def test_nothing_found(self, model):
        model.eval().test_anchor_score_thresh = 1.0
        instances = model([{"image": torch.zeros(3, 40, 60)}])[0]["instances"]
        assert len(instances) == 0 and instances.mask_scores.shape == (0,)

    def test_switched_off_nothing_of_it_is_left(self, plus_shapes_cfg):
        plus_shapes_cfg.MODEL.YOLACT.MASK_IOU.ENABLED = False
        model = build_model(plus_shapes_cfg)
        assert not any("mask_iou" in key for key in model.state_dict())
        assert set(model([training_input([[10, 10, 60, 60]], [1], size=160)])) == LOSSES
        instances = model.eval()([{"image": torch.zeros(3, 40, 60)}])[0]["instances"]
        assert not instances.has("mask_scores")
