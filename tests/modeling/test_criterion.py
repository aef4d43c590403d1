"""The losses of a batch against a plain composition in double precision."""

import itertools
import math

import numpy as np
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import BitMasks, Boxes, Instances
from plain import base_cfg, box_area, box_intersection, box_iou

from yolact_d2.modeling import DensePredictions, MaskIoUHead
from yolact_d2.modeling.criterion import YOLACTCriterion, relative_boxes

NUM_CLASSES = 3
NUM_PROTOTYPES = 4
WEIGHTS = {"loss_cls": 1.1, "loss_box_reg": 1.5, "loss_mask": 6.125, "loss_sem_seg": 0.7}
WEIGHTS_PLUS = {**WEIGHTS, "loss_mask_iou": 25.0}
# Sums of some hundred float32 terms, nearly all of one sign.
TOLERANCE = 2e-5


def _criterion(**changes):
    return YOLACTCriterion(
        **{
            "box2box_transform": Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            "num_classes": NUM_CLASSES,
            "loss_weights": WEIGHTS_PLUS,
            **changes,
        }
    )


def _assign(anchors, boxes, crowds):
    """For each anchor the index of its object, "background" or "ignored"."""
    iou = np.array([[box_iou(box, anchor) for anchor in anchors] for box in boxes])
    owners = []
    for a in range(len(anchors)):
        best = iou[:, a].argmax() if len(boxes) else None
        best_iou = iou[best, a] if len(boxes) else 0
        owners.append(best if best_iou >= 0.5 else "background" if best_iou < 0.4 else "ignored")
    for _ in boxes:
        g, a = np.unravel_index(iou.argmax(), iou.shape)
        owners[a] = g
        iou[g], iou[:, a] = -1, -1
    for a, anchor in enumerate(anchors):
        in_crowd = any(box_intersection(crowd, anchor) / box_area(anchor) > 0.7 for crowd in crowds)
        if in_crowd and isinstance(owners[a], str):
            owners[a] = "ignored"
    return owners


def _cross_entropy(logits, label):
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def _class_loss(logits, owners, classes):
    positives = [a for a, owner in enumerate(owners) if not isinstance(owner, str)]
    negatives = [a for a, owner in enumerate(owners) if owner == "background"]
    losses = [_cross_entropy(logits[a], NUM_CLASSES) for a in negatives]
    hardest = sorted(losses, reverse=True)[: 3 * len(positives)]
    return sum(_cross_entropy(logits[a], classes[owners[a]]) for a in positives) + sum(hardest)


def _box_loss(deltas, anchor, box):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    target = [
        ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / width / 0.1,
        ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / height / 0.1,
        math.log((box[2] - box[0]) / width) / 0.2,
        math.log((box[3] - box[1]) / height) / 0.2,
    ]
    errors = [abs(x - y) for x, y in zip(deltas, target)]
    return sum(e**2 / 2 if e < 1 else e - 0.5 for e in errors)


def _shrink(mask, height, width):
    """Bilinear for grids 2, 4 or 8 times coarser: the mean of the four pixels at the centre."""
    out = np.zeros((height, width), dtype=bool)
    factor = mask.shape[0] // height
    for row in range(height):
        for column in range(width):
            y, x = row * factor + factor // 2, column * factor + factor // 2
            out[row, column] = mask[y - 1 : y + 1, x - 1 : x + 1].mean() > 0.5
    return out


def _cell_loss(logit, target):
    return math.log1p(math.exp(-logit if target else logit))


def _mask_loss(prototypes, coefficients, mask, box):
    _, height, width = prototypes.shape
    target = _shrink(mask, height, width)
    x1, y1, x2, y2 = box * [width, height, width, height]
    total = 0
    for row in range(height):
        for column in range(width):
            if x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1:
                logit = coefficients @ prototypes[:, row, column]
                total += _cell_loss(logit, target[row, column])
            else:
                total += 100 * target[row, column]
    return total / ((x2 - x1) * (y2 - y1))


def _sem_seg_loss(logits, masks, classes):
    _, height, width = logits.shape
    target = np.zeros(logits.shape, dtype=bool)
    for mask, c in zip(masks, classes):
        target[c] |= _shrink(mask, height, width)
    return sum(map(_cell_loss, logits.flatten(), target.flatten())) / (height * width)


def _plain_losses(anchors, predictions, prototypes, sem_seg_logits, gt_instances):
    """The losses of a batch, and the mask losses of each positive of each image."""
    sums, num_positives, mask_losses = dict.fromkeys(WEIGHTS, 0), 0, []
    anchors = anchors.tensor.double().numpy()
    for i, gt in enumerate(gt_instances):
        logits, deltas, coefficients = (x[i].detach().double().numpy() for x in predictions)
        height, width = gt.image_size
        boxes = gt.gt_boxes.tensor.double().numpy() / [width, height, width, height]
        classes, masks = gt.gt_classes.numpy(), gt.gt_masks.tensor.numpy()
        crowd = gt.gt_iscrowd.numpy()
        crowds, boxes, classes, masks = boxes[crowd], boxes[~crowd], classes[~crowd], masks[~crowd]

        owners = _assign(anchors, boxes, crowds)
        positives = [(a, g) for a, g in enumerate(owners) if not isinstance(g, str)]
        num_positives += len(positives)
        sums["loss_cls"] += _class_loss(logits, owners, classes)
        for a, g in positives:
            sums["loss_box_reg"] += _box_loss(deltas[a], anchors[a], boxes[g])
        mask_losses.append(
            [
                _mask_loss(prototypes[i].double().numpy(), coefficients[a], masks[g], boxes[g])
                for a, g in positives
            ]
        )
        sums["loss_mask"] += sum(mask_losses[-1])
        sums["loss_sem_seg"] += _sem_seg_loss(sem_seg_logits[i].double().numpy(), masks, classes)
    divisors = dict.fromkeys(WEIGHTS, max(num_positives, 1))
    divisors["loss_sem_seg"] = len(gt_instances)
    losses = {name: WEIGHTS[name] * sums[name] / divisors[name] for name in WEIGHTS}
    return losses, mask_losses


def _random_boxes(num, generator):
    center = 0.15 + 0.7 * torch.rand(num, 2, generator=generator)
    half = 0.1 + 0.15 * torch.rand(num, 2, generator=generator)
    return torch.cat([center - half, center + half], dim=1)


def _ground_truth(iscrowd, image_size, generator):
    """Objects, by whether they are crowds, whose masks reach a little out of their boxes."""
    height, width = image_size
    num = len(iscrowd)
    gt = Instances(image_size)
    boxes = _random_boxes(num, generator) * torch.tensor([width, height, width, height])
    masks = torch.rand(num, height, width, generator=generator) < 0.02
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist()):
        area = mask[max(y1, 0) : y2, max(x1, 0) : x2]
        area |= torch.rand(area.shape, generator=generator) < 0.7
        mask[: height // 4, : width // 8] = True
    gt.gt_boxes = Boxes(boxes)
    gt.gt_classes = torch.randint(NUM_CLASSES, (num,), generator=generator)
    gt.gt_masks = BitMasks(masks)
    gt.gt_iscrowd = torch.tensor(iscrowd, dtype=torch.bool)
    return gt


def _batch(crowds_of_images, image_size=(48, 48), seed=0, num_anchors=50):
    """Arguments of the criterion; the first anchors fit the objects roughly."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image_size
    gt_instances = [_ground_truth(crowds, image_size, generator) for crowds in crowds_of_images]
    anchors = _random_boxes(num_anchors, generator)
    fitting = torch.cat([gt.gt_boxes.tensor for gt in gt_instances])
    fitting = fitting / torch.tensor([width, height, width, height])
    noise = 0.02 * torch.randn(len(fitting), 4, generator=generator)
    anchors[: len(fitting)] = fitting + noise
    n = len(gt_instances)
    predictions = DensePredictions(
        logits=2 * torch.randn(n, num_anchors, NUM_CLASSES + 1, generator=generator),
        deltas=torch.randn(n, num_anchors, 4, generator=generator),
        coefficients=torch.rand(n, num_anchors, NUM_PROTOTYPES, generator=generator) * 2 - 1,
    )
    prototypes = torch.rand(n, NUM_PROTOTYPES, height // 4, width // 4, generator=generator) * 3
    sem_seg_logits = torch.randn(n, NUM_CLASSES, height // 8, width // 8, generator=generator)
    return Boxes(anchors), predictions, prototypes, sem_seg_logits, gt_instances


OBJECT, CROWD = False, True
BATCHES = {
    "objects": [[OBJECT] * 3, [OBJECT] * 6],
    "objects and crowds": [[OBJECT, CROWD, OBJECT], [CROWD, OBJECT]],
    "an image without objects": [[OBJECT] * 4, []],
    "an image of crowds": [[CROWD, CROWD], [OBJECT]],
    "one image": [[OBJECT, OBJECT]],
}


@pytest.mark.parametrize("image_size", [(48, 48), (40, 64)], ids=["square", "wide"])
@pytest.mark.parametrize("images", BATCHES.values(), ids=BATCHES.keys())
def test_equals_the_plain_composition(images, image_size):
    batch = _batch(images, image_size)
    losses = _criterion()(*batch)
    expected, mask_losses = _plain_losses(*batch)
    assert sum(map(len, mask_losses)) > 0
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        expected, rel=TOLERANCE
    )


@pytest.mark.parametrize("images", [[[], []], [[CROWD], [CROWD, CROWD]], [[]]])
def test_batch_without_objects_has_zero_losses_in_the_graph(images):
    anchors, predictions, prototypes, sem_seg_logits, gt_instances = _batch(images)
    leaves = [*predictions, prototypes, sem_seg_logits]
    for leaf in leaves:
        leaf.requires_grad_()
    losses = _criterion()(anchors, predictions, prototypes, sem_seg_logits, gt_instances)
    assert [losses[name].item() for name in ("loss_cls", "loss_box_reg", "loss_mask")] == [0, 0, 0]
    nothing = torch.nn.functional.softplus(sem_seg_logits).mean(dim=(2, 3)).sum() / len(images)
    assert losses["loss_sem_seg"].item() == pytest.approx(
        WEIGHTS["loss_sem_seg"] * nothing.item(), rel=TOLERANCE
    )
    sum(losses.values()).backward()
    assert sem_seg_logits.grad.ne(0).all()
    for leaf in leaves[:-1]:
        assert leaf.grad is not None and not leaf.grad.any()


def test_without_gt_iscrowd_all_are_objects():
    batch = _batch([[OBJECT] * 3, [OBJECT] * 2])
    expected = {name: loss.item() for name, loss in _criterion()(*batch).items()}
    for gt in batch[-1]:
        gt.remove("gt_iscrowd")
    assert {name: loss.item() for name, loss in _criterion()(*batch).items()} == expected


def test_gradients_reach_positives_hard_negatives_and_nothing_else():
    anchors, predictions, prototypes, sem_seg_logits, gt_instances = _batch(
        BATCHES["objects and crowds"]
    )
    for x in predictions:
        x.requires_grad_()
    losses = _criterion()(anchors, predictions, prototypes, sem_seg_logits, gt_instances)
    sum(losses.values()).backward()
    for i, gt in enumerate(gt_instances):
        boxes = gt.gt_boxes.tensor.double().numpy() / 48
        crowd = gt.gt_iscrowd.numpy()
        owners = _assign(anchors.tensor.tolist(), boxes[~crowd], boxes[crowd])
        learns = {
            name: set(getattr(predictions, name).grad[i].any(dim=-1).nonzero().flatten().tolist())
            for name in predictions._fields
        }
        positives = {a for a, owner in enumerate(owners) if not isinstance(owner, str)}
        ignored = {a for a, owner in enumerate(owners) if owner == "ignored"}
        assert learns["deltas"] == learns["coefficients"] == positives
        assert positives < learns["logits"] and not learns["logits"] & ignored
        assert len(learns["logits"]) == 4 * len(positives)


def test_labels_of_anchors():
    anchors = Boxes(
        torch.tensor(
            [
                [0.0, 0.0, 0.4, 0.4],
                [0.0, 0.0, 0.4, 0.18],  # IoU 0.45
                [0.0, 0.0, 0.4, 0.3],  # IoU 0.75
                [0.6, 0.6, 0.8, 0.8],  # in the crowd
                [0.4, 0.6, 0.8, 0.8],  # half in the crowd
                [0.9, 0.0, 1.0, 0.1],
                [0.6, 0.0, 0.62, 0.1],  # the only one that touches the second object
            ]
        )
    )
    gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.6, 0.0, 0.8, 0.4]]))
    crowd = Boxes(torch.tensor([[0.6, 0.6, 1.0, 1.0]]))
    targets = _criterion().label_anchors(anchors, gt_boxes, torch.tensor([2, 0]), crowd)
    assert targets.labels.tolist() == [2, -1, 2, -1, NUM_CLASSES, NUM_CLASSES, 0]
    assert targets.positives.tolist() == [0, 2, 6]
    assert targets.matches.tolist() == [0, 0, 1]


def _mask_batch():
    """One image, and for each of its five or more positives its share of the mask loss."""
    batch = _batch([[OBJECT] * 2])
    mask_losses = _plain_losses(*batch)[1][0]
    assert len(mask_losses) >= 5
    return batch, [WEIGHTS["loss_mask"] * x / len(mask_losses) for x in mask_losses]


def test_mask_loss_of_a_random_subset_is_scaled_back_up():
    """Every subset turns up, so the expectation is the loss of all positives."""
    batch, shares = _mask_batch()
    limit = 2
    criterion = _criterion(max_mask_positives=limit)
    possible = {
        subset: sum(shares[p] for p in subset) * len(shares) / limit
        for subset in itertools.combinations(range(len(shares)), limit)
    }
    torch.manual_seed(0)
    seen = []
    for _ in range(30 * len(possible)):
        loss = criterion(*batch)["loss_mask"].item()
        subset = min(possible, key=lambda s: abs(possible[s] - loss))
        assert loss == pytest.approx(possible[subset], rel=TOLERANCE)
        seen.append(subset)
    assert set(seen) == set(possible)
    # Uniform: 30 of each, and a binomial's standard deviation is less than 5.5.
    assert max(map(seen.count, possible)) < 60


@pytest.mark.parametrize("extra", [None, 0, 7])
def test_all_positives_count_for_masks_when_they_are_not_more_than_the_limit(extra):
    batch, shares = _mask_batch()
    limit = 0 if extra is None else len(shares) + extra
    loss = _criterion(max_mask_positives=limit)(*batch)["loss_mask"].item()
    assert loss == pytest.approx(sum(shares), rel=TOLERANCE)


def test_the_subset_changes_no_other_loss():
    batch = _batch(BATCHES["objects"])
    every, subset = (_criterion(max_mask_positives=limit)(*batch) for limit in (0, 1))
    for name in ("loss_cls", "loss_box_reg", "loss_sem_seg"):
        assert subset[name].item() == every[name].item()


def test_relative_boxes():
    boxes = relative_boxes(Boxes(torch.tensor([[20.0, 10.0, 100.0, 50.0]])), (50, 200))
    torch.testing.assert_close(boxes.tensor, torch.tensor([[0.1, 0.2, 0.5, 1.0]]))
    assert relative_boxes(Boxes(torch.zeros(0, 4)), (50, 200)).tensor.shape == (0, 4)


def test_configured_as_in_the_paper():
    criterion = YOLACTCriterion(base_cfg())
    assert criterion.num_classes == 80
    assert criterion.iou_thresholds == (0.4, 0.5)
    assert criterion.crowd_overlap_thresh == 0.7
    assert criterion.negatives_per_positive == 3
    assert criterion.max_mask_positives == 100
    assert tuple(criterion.box2box_transform.weights) == (10, 10, 5, 5)
    assert criterion.loss_weights == {
        "loss_cls": 1,
        "loss_box_reg": 1.5,
        "loss_mask": 6.125,
        "loss_sem_seg": 1,
        "loss_mask_iou": 25,
    }
    assert criterion.min_mask_iou_area == 25


@pytest.mark.parametrize("name", WEIGHTS)
def test_configured_weight_belongs_to_its_loss(name):
    cfg = base_cfg()
    cfg.MODEL.YOLACT.NUM_CLASSES = NUM_CLASSES
    batch = _batch(BATCHES["objects"])
    before = YOLACTCriterion(cfg)(*batch)
    cfg.MODEL.YOLACT[f"{name.upper()}_WEIGHT"] *= 2
    after = YOLACTCriterion(cfg)(*batch)
    for other in WEIGHTS:
        factor = 2 if other == name else 1
        assert after[other].item() == pytest.approx(factor * before[other].item(), rel=1e-6)


def _plain_mask_iou_loss(head, anchors, predictions, prototypes, gt_instances, min_area):
    """Summed over positives one by one, and how many there were and counted."""
    total, num_positives, num_large = 0, 0, 0
    for i, gt in enumerate(gt_instances):
        height, width = prototypes.shape[2:]
        boxes = gt.gt_boxes.tensor.double().numpy() / 48
        crowd = gt.gt_iscrowd.numpy()
        objects = gt[~gt.gt_iscrowd]
        owners = _assign(anchors.tensor.double().numpy(), boxes[~crowd], boxes[crowd])
        for a, g in enumerate(owners):
            if isinstance(g, str):
                continue
            num_positives += 1
            gt_mask = _shrink(objects.gt_masks.tensor[g].numpy(), height, width)
            if gt_mask.sum() <= min_area:
                continue
            num_large += 1
            x1, y1, x2, y2 = boxes[~crowd][g] * [width, height, width, height]
            coefficients = predictions.coefficients[i, a]
            soft = (coefficients[:, None, None] * prototypes[i]).sum(dim=0).sigmoid()
            for row in range(height):
                for column in range(width):
                    if not (x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1):
                        soft[row, column] = 0
            mask = (soft > 0.5).numpy()
            iou = (mask & gt_mask).sum() / (mask | gt_mask).sum()
            error = abs(head(soft[None], objects.gt_classes[g : g + 1]).item() - iou)
            total += error**2 / 2 if error < 1 else error - 0.5
    return total, num_positives, num_large


def _mask_iou_head():
    torch.manual_seed(1)
    return MaskIoUHead(conv_dims=(4, 8), num_classes=NUM_CLASSES, mask_size=12)


@pytest.mark.parametrize("min_area", [0, 13])
@pytest.mark.parametrize("images", BATCHES.values(), ids=BATCHES.keys())
def test_mask_iou_loss_equals_the_plain_composition(images, min_area):
    batch, head = _batch(images), _mask_iou_head()
    losses = _criterion(min_mask_iou_area=min_area)(*batch, head)
    with torch.no_grad():
        total, num_positives, num_large = _plain_mask_iou_loss(
            head, *batch[:3], batch[-1], min_area
        )
    assert 0 < num_large and (num_large == num_positives) == (min_area == 0 or [OBJECT] in images)
    expected = WEIGHTS_PLUS["loss_mask_iou"] * total / num_positives
    assert losses["loss_mask_iou"].item() == pytest.approx(expected, rel=TOLERANCE)
    others = _criterion(min_mask_iou_area=min_area)(*batch)
    assert others == {name: losses[name] for name in WEIGHTS}


def test_mask_iou_loss_of_a_subset_is_not_scaled_up():
    """Subsets of all positives, one by one: their losses add up to the loss of all."""
    batch, shares = _mask_batch()
    head = _mask_iou_head()
    every = _criterion(min_mask_iou_area=0)(*batch, head)["loss_mask_iou"].item()
    single = _criterion(min_mask_iou_area=0, max_mask_positives=1)
    torch.manual_seed(0)
    seen = {round(single(*batch, head)["loss_mask_iou"].item(), 6) for _ in range(30 * len(shares))}
    assert len(seen) == len(shares)
    assert sum(seen) == pytest.approx(every, rel=1e-4)


def test_mask_iou_loss_teaches_the_head_the_coefficients_and_the_prototypes():
    anchors, predictions, prototypes, sem_seg_logits, gt_instances = _batch([[OBJECT] * 3])
    head = _mask_iou_head()
    leaves = [predictions.coefficients, prototypes, *head.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    criterion = _criterion(min_mask_iou_area=0)
    losses = criterion(anchors, predictions, prototypes, sem_seg_logits, gt_instances, head)
    losses["loss_mask_iou"].backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("images, min_area", [([[], []], 25), ([[OBJECT] * 3], 10**6)])
def test_mask_iou_loss_of_nothing_is_zero_and_in_the_graph(images, min_area):
    batch, head = _batch(images), _mask_iou_head()
    loss = _criterion(min_mask_iou_area=min_area)(*batch, head)["loss_mask_iou"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
