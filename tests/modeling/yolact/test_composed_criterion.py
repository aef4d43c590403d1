"""The losses of other parts, each against a plain computation in double precision."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from plain import CONFIGS, base_cfg, box_area, box_intersection, box_iou
from small_models import tiny_yolact, training_input

from yolact_d2 import load_config
from yolact_d2.modeling import ComposedCriterion, DensePredictions
from yolact_d2.modeling.yolact.anchors import DistanceTransform
from yolact_d2.modeling.yolact.assigners import (
    ImageAnchors,
    assign_atss,
    assign_by_iou,
    assign_task_aligned,
)
from yolact_d2.modeling.yolact.head import class_scores
from yolact_d2.modeling.yolact.losses import dice_loss, quality_focal_loss, varifocal_loss
from yolact_d2.modeling.yolact.matcher import FOREGROUND

NUM_CLASSES, SIZE = 3, 32


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit, target):
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(sigmoid(-logit))


def quality_focal(logit, target):
    return cross_entropy(logit, target) * (target - sigmoid(logit)) ** 2


def varifocal(logit, target):
    weight = target if target > 0 else 0.75 * sigmoid(logit) ** 2
    return weight * cross_entropy(logit, target)


def giou(a, b):
    union = box_area(a) + box_area(b) - box_intersection(a, b)
    around = [*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])]
    return 1 - box_iou(a, b) + (box_area(around) - union) / box_area(around)


def diou(a, b):
    around = [*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])]
    diagonal = (around[2] - around[0]) ** 2 + (around[3] - around[1]) ** 2
    (ax, ay), (bx, by) = ((np.array(x[:2]) + x[2:]) / 2 for x in (a, b))
    return 1 - box_iou(a, b) + ((ax - bx) ** 2 + (ay - by) ** 2) / diagonal


def ciou(a, b):
    angle = [math.atan((x[2] - x[0]) / (x[3] - x[1])) for x in (a, b)]
    v = 4 / math.pi**2 * (angle[0] - angle[1]) ** 2
    return diou(a, b) + v * v / (1 - box_iou(a, b) + v)


def criterion(**keys):
    cfg = base_cfg()
    cfg.MODEL.YOLACT.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.YOLACT.update({"ANCHOR_FREE": True, "CLS_LOSS_TYPE": "bce", **keys})
    return ComposedCriterion(cfg)


def batch(seed=0):
    """Arguments of the criterion: two images with objects and a crowd, and one without."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    center = random(40, 2)
    anchors = Boxes(torch.cat([center - 0.2, center + 0.2], dim=1))
    images = []
    for num in (3, 2, 0):
        gt = Instances((SIZE, SIZE))
        start = 0.6 * random(num, 2)
        boxes = torch.cat([start, start + 0.1 + 0.3 * random(num, 2)], dim=1)
        gt.gt_boxes = Boxes(boxes * SIZE)
        gt.gt_classes = torch.randint(NUM_CLASSES, (num,), generator=generator)
        gt.gt_masks = BitMasks(random(num, SIZE, SIZE) < 0.5)
        gt.gt_iscrowd = torch.arange(num) == 2
        images.append(gt)
    predictions = DensePredictions(
        2 * torch.randn(3, 40, NUM_CLASSES, generator=generator),
        random(3, 40, 4) * 0.5 - 0.2,
        random(3, 40, 4) * 2 - 1,
    )
    prototypes = random(3, 4, SIZE // 4, SIZE // 4)
    sem_seg_logits = torch.randn(3, NUM_CLASSES, SIZE // 8, SIZE // 8, generator=generator)
    return [anchors[:30], anchors[30:]], predictions, prototypes, sem_seg_logits, images


def plain_losses(args, cls_loss, box_loss, is_aligned):
    """loss_cls and loss_box_reg of a batch; the assignment itself is tested elsewhere."""
    levels, predictions, _, _, images = args
    anchors = Boxes.cat(levels).tensor
    sums, weight_sum = [0, 0], 0
    for logits, deltas, gt in zip(predictions.logits, predictions.deltas, images):
        boxes = []
        for (x1, y1, x2, y2), coded in zip(anchors.double().tolist(), deltas.double().tolist()):
            x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            left, top, right, bottom = (math.exp(d) / 2 for d in coded)
            boxes.append([x - left * w, y - top * h, x + right * w, y + bottom * h])
        boxes = np.array(boxes)
        objects, crowds = gt[~gt.gt_iscrowd], gt[gt.gt_iscrowd]
        gt_boxes = objects.gt_boxes.tensor / SIZE
        assignment = assign_task_aligned(
            ImageAnchors(
                levels,
                torch.tensor(boxes, dtype=torch.float32),
                logits.sigmoid(),
                Boxes(gt_boxes),
                objects.gt_classes,
            )
        )
        for a, anchor in enumerate(anchors.double().numpy()):
            target = [0.0] * NUM_CLASSES
            if assignment.labels[a] == FOREGROUND:
                g = assignment.matches[a]
                true = gt_boxes[g].double().numpy()
                weight = assignment.quality[a].item() if is_aligned else 1
                weight_sum += weight
                is_soft = cls_loss is not cross_entropy and not is_aligned
                target[objects.gt_classes[g]] = box_iou(boxes[a], true) if is_soft else weight
                sums[1] += weight * box_loss(boxes[a], true)
            elif any(
                box_intersection(crowd / SIZE, anchor) / box_area(anchor) > 0.7
                for crowd in crowds.gt_boxes.tensor.double().numpy()
            ):
                continue
            sums[0] += sum(map(cls_loss, logits[a].double().tolist(), target))
    return [x / max(weight_sum, 1) for x in sums]


def without_quality(candidates):
    return assign_task_aligned(candidates)._replace(quality=None)


@pytest.mark.parametrize(
    "names, functions",
    [
        (("bce", "giou"), (cross_entropy, giou)),
        (("quality_focal", "diou"), (quality_focal, diou)),
        (("varifocal", "ciou"), (varifocal, ciou)),
    ],
)
@pytest.mark.parametrize("is_aligned", [True, False])
def test_class_and_box_losses(names, functions, is_aligned):
    keys = dict(zip(("CLS_LOSS_TYPE", "BBOX_REG_LOSS_TYPE"), names))
    part = criterion(ASSIGNER="task_aligned" if is_aligned else "atss", **keys)
    if not is_aligned:
        part.assigner = without_quality
    for seed in range(5):
        args = batch(seed)
        losses = part(*args)
        expected = plain_losses(args, *functions, is_aligned)
        found = [losses[f"loss_{name}"].item() / part.loss_weights[f"loss_{name}"]
                 for name in ("cls", "box_reg")]  # fmt: skip
        assert found == pytest.approx(expected, rel=1e-4)


def test_dice_loss():
    masks, gt_masks = torch.rand(5, 6, 7), torch.rand(5, 6, 7) < 0.4
    expected = 0
    for mask, gt in zip(masks.double().numpy(), gt_masks.numpy()):
        overlap = sum(mask[i] for i in np.ndindex(gt.shape) if gt[i])
        expected += 1 - (2 * overlap + 1) / (mask.sum() + gt.sum() + 1)
    assert dice_loss(masks, gt_masks).item() == pytest.approx(expected, rel=1e-5)
    assert dice_loss(gt_masks.float(), gt_masks).item() == 0
    with_dice, without = (
        criterion(ASSIGNER="task_aligned", MASK_LOSS_TYPE=kind)(*batch())["loss_mask"]
        for kind in ("bce_dice", "bce")
    )
    assert 0.1 < (with_dice - without) / 6.125 < 1


def test_distances_code_boxes_around_the_centre_of_an_anchor():
    anchors = torch.tensor([[0.1, 0.2, 0.3, 0.6]]).expand(3, 4)
    coding = DistanceTransform()
    deltas = torch.tensor([[1, 1, 1, 1], [2, 1, 3, 1.5], [4, 0.25, 1, 1]]).log()
    boxes = coding.apply_deltas(deltas, anchors)
    expected = [[0.1, 0.2, 0.3, 0.6], [0.0, 0.2, 0.5, 0.7], [-0.2, 0.35, 0.3, 0.6]]
    torch.testing.assert_close(boxes, torch.tensor(expected))
    torch.testing.assert_close(coding.get_deltas(anchors, boxes), deltas)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "smooth_l1"])
def test_box_losses_of_extreme_outputs_have_gradients(kind):
    """A box that has collapsed is pulled back; an object beside the centre of its anchor counts."""
    part = criterion(ASSIGNER="task_aligned", BBOX_REG_LOSS_TYPE=kind)
    args = batch()
    args[-1][0].gt_boxes.tensor[0] = torch.tensor([16.0, 16.0, 16.01, 16.01])
    for value in (-4.0, 0.0, 4.0, -1e8, 1e8):
        deltas = torch.full_like(args[1].deltas, value, requires_grad=True)
        loss = part(args[0], args[1]._replace(deltas=deltas), *args[2:])["loss_box_reg"]
        (gradient,) = torch.autograd.grad(loss, deltas)
        assert loss.isfinite() and gradient.isfinite().all()
        assert gradient.any() or abs(value) > 10


def test_gradients_of_focal_losses():
    """Against differences, where the target is 0 and where it is not."""
    for function, plain in ((quality_focal_loss, quality_focal), (varifocal_loss, varifocal)):
        for logit in (-4.6, 0.0, 2.0):
            for target in (0.0, 0.6):
                x = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
                loss = function(x, torch.tensor(target, dtype=torch.float64))
                loss.backward()
                slope = (plain(logit + 1e-6, target) - plain(logit - 1e-6, target)) / 2e-6
                assert loss.item() == pytest.approx(plain(logit, target))
                assert x.grad.item() == pytest.approx(slope, rel=1e-5)


def test_keys_choose_the_assigner():
    for name, function in (
        ("max_iou", assign_by_iou), ("atss", assign_atss), ("task_aligned", assign_task_aligned)
    ):  # fmt: skip
        assigner = criterion(ASSIGNER=name).assigner
        assert getattr(assigner, "func", assigner) is function
    cfg = base_cfg()
    cfg.MODEL.YOLACT.ASSIGNER = "task_aligned"
    cfg.MODEL.YOLACT.TASK_ALIGNED.update({"TOPK": 3, "ALPHA": 1.0, "BETA": 2.0})
    assert ComposedCriterion(cfg).assigner.keywords == {"topk": 3, "alpha": 1.0, "beta": 2.0}


def test_heads_with_the_wrong_number_of_scores_are_named():
    levels, predictions, *others = batch()
    with pytest.raises(ValueError, match="has_background=True"):
        criterion(ASSIGNER="task_aligned", CLS_LOSS_TYPE="softmax")(levels, predictions, *others)
    logits = torch.randn(3, 40, NUM_CLASSES + 1)
    with pytest.raises(ValueError, match="has_background=False"):
        part = criterion(ASSIGNER="task_aligned")
        part(levels, predictions._replace(logits=logits), *others)


def test_scores_without_background():
    logits = torch.randn(7, 4)
    expected = [[sigmoid(x) for x in row] for row in logits.tolist()]
    torch.testing.assert_close(class_scores(logits, False), torch.tensor(expected))
    torch.testing.assert_close(class_scores(logits, True), logits.softmax(dim=1)[:, :3])
    model = tiny_yolact("yolact_modern_shapes", MODEL__YOLACT__HEAD_CONV_DIM=64).eval()
    # tiny_yolact enlarged the weights, the bias is left.
    assert model.head.cls_score.bias.sigmoid().tolist() == pytest.approx([0.01] * 8)


def load(*opts):
    return build_model(load_config(str(CONFIGS / "yolact_modern_shapes.yaml"), opts))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("CRITERION", "YOLACTCriterion", "ASSIGNER is 'task_aligned': YOLACTCriterion has"),
        ("CRITERION", "Criterion", "ComposedCriterion, YOLACTCriterion"),
        ("ASSIGNER", "simota", "atss, max_iou, task_aligned"),
        ("CLS_LOSS_TYPE", "focal", "bce, quality_focal, softmax, varifocal"),
        ("BBOX_REG_LOSS_TYPE", "iou", "ciou, diou, giou, smooth_l1"),
        ("MASK_LOSS_TYPE", "dice", "bce, bce_dice"),
        ("HEAD", "FCOSHead", "DecoupledHead, YOLACTHead"),
        ("HEAD_CONV_DIM", 80, "not 64 or a larger multiple of 32"),
        ("HEAD_CONV_DIM", 32, "not 64 or a larger multiple of 32"),
        ("HEAD_CONV_DIM", 0, "not 64 or a larger multiple of 32"),
        ("HEAD_NUM_CONVS", 0, "not 1 or more"),
        ("TASK_ALIGNED.TOPK", 0, "not 1 or more"),
        ("TASK_ALIGNED.ALPHA", -1.0, "must be 0 or more"),
        ("TASK_ALIGNED.BETA", -6.0, "must be 0 or more"),
        ("PRIOR_PROB", 1.0, "not between 0 and 1"),
    ],
)
def test_wrong_parts_are_named(key, value, message):
    with pytest.raises(ValueError, match=message) as raised:
        load(f"MODEL.YOLACT.{key}", value)
    assert "MODEL.YOLACT." in str(raised.value)


def test_anchor_free_models_have_one_location_a_cell():
    with pytest.raises(ValueError, match="ANCHOR_FREE needs one location a cell"):
        load("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0, 2.0]])


@pytest.mark.parametrize("assigner", ["max_iou", "atss", "task_aligned"])
@pytest.mark.parametrize("cls_loss", ["softmax", "bce", "quality_focal", "varifocal"])
def test_all_parts_go_together(assigner, cls_loss):
    """With both heads and codings: losses are finite and fall in ten steps on a batch."""
    inputs = [training_input([[4, 4, 40, 50], [30, 10, 90, 60]]), training_input([])]
    for head, box_loss in (("YOLACTHead", "ciou"), ("DecoupledHead", "smooth_l1")):
        model = tiny_yolact(
            "yolact_modern_shapes",
            **{
                f"MODEL__YOLACT__{key}": value
                for key, value in {
                    "ASSIGNER": assigner, "CLS_LOSS_TYPE": cls_loss, "HEAD": head,
                    "BBOX_REG_LOSS_TYPE": box_loss, "HEAD_CONV_DIM": 64,
                }.items()
            },
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        totals = []
        for _ in range(10):
            total = sum(model(inputs).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
        assert np.isfinite(totals).all() and totals[-1] < 0.95 * totals[0]
