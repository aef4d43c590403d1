"""The losses of a batch against a plain composition in double precision."""

import itertools
import math

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from plain import base_cfg, match_by_brute_force

from yolact_d2.modeling import ComposedCriterion, DensePredictions, MaskIoUHead
from yolact_d2.modeling.yolact.criterion import YOLACTCriterion
from yolact_d2.modeling.yolact.matcher import BACKGROUND, IGNORE

NUM_CLASSES = 3
NUM_PROTOTYPES = 4
WEIGHTS = {  # other than the defaults
    "loss_cls": 1.1,
    "loss_box_reg": 1.6,
    "loss_mask": 6.5,
    "loss_sem_seg": 0.7,
    "loss_mask_iou": 24.0,
}
# Sums of some hundred float32 terms, nearly all of one sign.
TOLERANCE = 2e-5


def _criterion(min_negatives=0, max_mask_positives=100, min_mask_iou_area=25, kind=YOLACTCriterion):
    cfg = base_cfg()
    yolact = cfg.MODEL.YOLACT
    yolact.NUM_CLASSES = NUM_CLASSES
    yolact.update({f"{name.upper()}_WEIGHT": weight for name, weight in WEIGHTS.items()})
    yolact.MIN_NEGATIVES_PER_IMAGE = min_negatives
    yolact.MAX_MASK_POSITIVES = max_mask_positives
    yolact.MASK_IOU.MIN_AREA = min_mask_iou_area
    return kind(cfg)


def _mask_iou_head():
    torch.manual_seed(1)
    return MaskIoUHead(conv_dims=(4, 8), num_classes=NUM_CLASSES, mask_size=10)


def _assign(anchors, boxes, crowds):
    """For each anchor the index of its object, "background" or "ignored"."""
    matches, labels = match_by_brute_force(anchors, boxes, crowds)
    others = {BACKGROUND: "background", IGNORE: "ignored"}
    return [others.get(label, match) for match, label in zip(matches, labels)]


def _cross_entropy(logits, label):
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def _class_loss(logits, owners, classes, min_negatives):
    """The loss, and the number of negatives in it."""
    positives = [a for a, owner in enumerate(owners) if not isinstance(owner, str)]
    negatives = [a for a, owner in enumerate(owners) if owner == "background"]
    losses = [_cross_entropy(logits[a], NUM_CLASSES) for a in negatives]
    hardest = sorted(losses, reverse=True)[: max(3 * len(positives), min_negatives)]
    loss = sum(_cross_entropy(logits[a], classes[owners[a]]) for a in positives) + sum(hardest)
    return loss, len(hardest)


def _smooth_l1(error):
    return error**2 / 2 if abs(error) < 1 else abs(error) - 0.5


def _box_loss(deltas, anchor, box):
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    target = [
        ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / width / 0.1,
        ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / height / 0.1,
        math.log((box[2] - box[0]) / width) / 0.2,
        math.log((box[3] - box[1]) / height) / 0.2,
    ]
    return sum(_smooth_l1(x - y) for x, y in zip(deltas, target))


def _shrink(mask, height, width):
    """Bilinear resize to a 2, 4 or 8 times smaller grid: the mean of the four central pixels."""
    out = np.zeros((height, width), dtype=bool)
    factor = mask.shape[0] // height
    for row, column in np.ndindex(height, width):
        y, x = row * factor + factor // 2, column * factor + factor // 2
        out[row, column] = mask[y - 1 : y + 1, x - 1 : x + 1].mean() > 0.5
    return out


def _pixel_loss(logit, target):
    return math.log1p(math.exp(-logit if target else logit))


def _mask_losses(prototypes, coefficients, mask, box, predicted_iou):
    """Loss of a mask, loss of its predicted IoU (a function of the mask), area of its target."""
    _, height, width = prototypes.shape
    target = _shrink(mask, height, width)
    x1, y1, x2, y2 = box * [width, height, width, height]
    total, soft = 0, np.zeros((height, width), dtype=np.float32)
    for row, column in np.ndindex(height, width):
        if x1 - 1 <= column < x2 + 1 and y1 - 1 <= row < y2 + 1:
            logit = coefficients @ prototypes[:, row, column]
            total += _pixel_loss(logit, target[row, column])
            soft[row, column] = 1 / (1 + math.exp(-logit))
        else:
            total += 100 * target[row, column]
    found = soft > 0.5
    iou = (found & target).sum() / (found | target).sum()
    iou_loss = _smooth_l1(predicted_iou(torch.from_numpy(soft)) - iou)
    return total / ((x2 - x1) * (y2 - y1)), iou_loss, target.sum()


def _sem_seg_loss(logits, masks, classes):
    _, height, width = logits.shape
    target = np.zeros(logits.shape, dtype=bool)
    for mask, c in zip(masks, classes):
        target[c] |= _shrink(mask, height, width)
    return sum(map(_pixel_loss, logits.flatten(), target.flatten())) / (height * width)


def _objects_and_crowds(gt):
    """Boxes relative to the image, classes and masks of the objects, and boxes of the crowds."""
    height, width = gt.image_size
    boxes = gt.gt_boxes.tensor.double().numpy() / [width, height, width, height]
    classes, masks = gt.gt_classes.numpy(), gt.gt_masks.tensor.numpy()
    crowd = gt.gt_iscrowd.numpy()
    return boxes[~crowd], classes[~crowd], masks[~crowd], boxes[crowd]


@torch.no_grad()
def _plain_losses(
    levels, predictions, prototypes, sem_seg_logits, gt_instances, head, min_area, min_negatives=0
):
    """The losses of a batch, and (mask loss, mask IoU loss) of each positive of each image."""
    sums, num_positives, num_negatives = dict.fromkeys(WEIGHTS, 0), 0, 0
    of_positives = []
    anchors = Boxes.cat(levels).tensor.double().numpy()
    for i, gt in enumerate(gt_instances):
        logits, deltas, coefficients = (x[i].detach().double().numpy() for x in predictions)
        boxes, classes, masks, crowds = _objects_and_crowds(gt)
        owners = _assign(anchors, boxes, crowds)
        positives = [(a, g) for a, g in enumerate(owners) if not isinstance(g, str)]
        num_positives += len(positives)
        loss_cls, negatives = _class_loss(logits, owners, classes, min_negatives)
        sums["loss_cls"] += loss_cls
        num_negatives += negatives
        of_positives.append([])
        for a, g in positives:
            sums["loss_box_reg"] += _box_loss(deltas[a], anchors[a], boxes[g])
            loss, iou_loss, area = _mask_losses(
                prototypes[i].double().numpy(),
                coefficients[a],
                masks[g],
                boxes[g],
                lambda soft, c=classes[g]: head(soft[None], torch.tensor([c])).item(),
            )
            iou_loss = iou_loss if area > min_area else 0
            sums["loss_mask"] += loss
            sums["loss_mask_iou"] += iou_loss
            of_positives[-1].append((loss, iou_loss))
        sums["loss_sem_seg"] += _sem_seg_loss(sem_seg_logits[i].double().numpy(), masks, classes)
    divisors = dict.fromkeys(WEIGHTS, max(num_positives, 1))
    divisors["loss_cls"] = max(num_positives, num_negatives / 3, 1)
    divisors["loss_sem_seg"] = len(gt_instances)
    losses = {name: WEIGHTS[name] * sums[name] / divisors[name] for name in WEIGHTS}
    return losses, of_positives


def _random_boxes(num, generator):
    center = 0.15 + 0.7 * torch.rand(num, 2, generator=generator)
    half = 0.1 + 0.15 * torch.rand(num, 2, generator=generator)
    return torch.cat([center - half, center + half], dim=1)


def _ground_truth(iscrowd, image_size, generator):
    """Objects and crowds with masks that extend beyond their boxes."""
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
    """Arguments of the criterion. The first anchors are close to the objects."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image_size
    gt_instances = [_ground_truth(crowds, image_size, generator) for crowds in crowds_of_images]
    anchors = _random_boxes(num_anchors, generator)
    close = torch.cat([gt.gt_boxes.tensor for gt in gt_instances])
    close = close / torch.tensor([width, height, width, height])
    noise = 0.02 * torch.randn(len(close), 4, generator=generator)
    anchors[: len(close)] = close + noise
    n = len(gt_instances)
    predictions = DensePredictions(
        logits=2 * torch.randn(n, num_anchors, NUM_CLASSES + 1, generator=generator),
        deltas=torch.randn(n, num_anchors, 4, generator=generator),
        coefficients=torch.rand(n, num_anchors, NUM_PROTOTYPES, generator=generator) * 2 - 1,
    )
    prototypes = torch.rand(n, NUM_PROTOTYPES, height // 4, width // 4, generator=generator) * 3
    sem_seg_logits = torch.randn(n, NUM_CLASSES, height // 8, width // 8, generator=generator)
    levels = [Boxes(x) for x in anchors.split([num_anchors // 2, num_anchors - num_anchors // 2])]
    return levels, predictions, prototypes, sem_seg_logits, gt_instances


OBJECT, CROWD = False, True
BATCHES = {
    "objects": [[OBJECT] * 3, [OBJECT] * 6],
    "objects and crowds": [[OBJECT, CROWD, OBJECT], [CROWD, OBJECT]],
    "an image without objects": [[OBJECT] * 4, []],
    "an image of crowds": [[CROWD, CROWD], [OBJECT]],
    "one image": [[OBJECT, OBJECT]],
}


def _values(losses):
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("image_size", [(48, 48), (40, 64)], ids=["square", "wide"])
@pytest.mark.parametrize("images", BATCHES.values(), ids=BATCHES.keys())
def test_equals_the_plain_composition(images, image_size):
    batch, head = _batch(images, image_size), _mask_iou_head()
    for min_area, minimum in ((13, 20), (0, 0)):
        losses = _values(_criterion(minimum, min_mask_iou_area=min_area)(*batch, head))
        expected, _ = _plain_losses(*batch, head, min_area, minimum)
        assert losses == pytest.approx(expected, rel=TOLERANCE)
    assert losses["loss_mask_iou"] > 0
    # With the same parts, ComposedCriterion computes the same.
    composed = _criterion(min_mask_iou_area=0, kind=ComposedCriterion)
    assert _values(composed(*batch, head)) == pytest.approx(losses, rel=TOLERANCE)
    without_head = _values(_criterion()(*batch))
    assert without_head == {name: losses[name] for name in WEIGHTS if name != "loss_mask_iou"}


@pytest.mark.parametrize("images", [[[], []], [[CROWD], [CROWD, CROWD]], [[]]])
def test_losses_without_objects_are_zero_with_zero_gradients(images):
    batch, head = _batch(images), _mask_iou_head()
    _, predictions, prototypes, sem_seg_logits, _ = batch
    leaves = [*predictions, prototypes, sem_seg_logits]
    for leaf in leaves:
        leaf.requires_grad_()
    losses = _criterion()(*batch, head)
    assert all(losses[name].item() == 0 for name in WEIGHTS if name != "loss_sem_seg")
    background = torch.nn.functional.softplus(sem_seg_logits).mean(dim=(2, 3)).sum() / len(images)
    assert losses["loss_sem_seg"].item() == pytest.approx(
        WEIGHTS["loss_sem_seg"] * background.item(), rel=TOLERANCE
    )
    sum(losses.values()).backward()
    assert sem_seg_logits.grad.ne(0).all()
    for leaf in [*leaves[:-1], *head.parameters()]:
        assert leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize("images", [[[], []], [[CROWD], []], [[], [OBJECT], []]])
@pytest.mark.parametrize("minimum", [1, 6, 1000])
def test_images_without_objects_train_the_class_layer_if_asked(images, minimum):
    batch = _batch(images)
    logits = batch[1].logits.requires_grad_()
    loss = _criterion(minimum)(*batch)["loss_cls"]
    expected, _ = _plain_losses(*batch, _mask_iou_head(), 0, minimum)
    assert loss.item() == pytest.approx(expected["loss_cls"], rel=TOLERANCE)
    loss.backward()
    for gradient, crowds in zip(logits.grad, images):
        learning = gradient.any(dim=-1)
        assert learning.sum() == min(minimum, 50) or crowds
        assert (gradient[learning, -1] < 0).all() or crowds  # towards background


def test_without_gt_iscrowd_there_are_no_crowds():
    batch = _batch([[OBJECT] * 3, [OBJECT] * 2])
    expected = _values(_criterion()(*batch))
    for gt in batch[-1]:
        gt.remove("gt_iscrowd")
    assert _values(_criterion()(*batch)) == expected


def test_gradients_reach_positives_and_hard_negatives_only():
    batch, head = _batch(BATCHES["objects and crowds"]), _mask_iou_head()
    levels, predictions, prototypes, _, gt_instances = batch
    for x in (*predictions, prototypes):
        x.requires_grad_()
    losses = _criterion(min_mask_iou_area=0)(*batch, head)
    leaves = [predictions.coefficients, prototypes, *head.parameters()]
    gradients = torch.autograd.grad(losses["loss_mask_iou"], leaves, retain_graph=True)
    assert all(gradient.any() for gradient in gradients)
    sum(losses.values()).backward()
    for i, gt in enumerate(gt_instances):
        boxes, _, _, crowds = _objects_and_crowds(gt)
        owners = _assign(Boxes.cat(levels).tensor.tolist(), boxes, crowds)
        learns = {
            name: set(getattr(predictions, name).grad[i].any(dim=-1).nonzero().flatten().tolist())
            for name in predictions._fields
        }
        positives = {a for a, owner in enumerate(owners) if not isinstance(owner, str)}
        ignored = {a for a, owner in enumerate(owners) if owner == "ignored"}
        assert learns["deltas"] == learns["coefficients"] == positives
        assert positives < learns["logits"] and not learns["logits"] & ignored
        assert len(learns["logits"]) == 4 * len(positives)


@pytest.fixture(scope="module")
def mask_batch():
    """A batch of one image, and the weighted losses of each of its positives."""
    batch, head = _batch([[OBJECT] * 2]), _mask_iou_head()
    _, (of_positives,) = _plain_losses(*batch, head, 0)
    assert len(of_positives) >= 5
    of_positives = np.array(of_positives) / len(of_positives)
    return batch, head, of_positives * [WEIGHTS["loss_mask"], WEIGHTS["loss_mask_iou"]]


def test_mask_loss_of_a_random_subset_is_scaled_up(mask_batch):
    """Every subset occurs, so the expectation is the loss of all positives."""
    batch, _, of_positives = mask_batch
    limit = 2
    criterion = _criterion(max_mask_positives=limit)
    possible = {
        subset: of_positives[list(subset), 0].sum() * len(of_positives) / limit
        for subset in itertools.combinations(range(len(of_positives)), limit)
    }
    torch.manual_seed(0)
    seen = []
    for _ in range(15 * len(possible)):
        loss = criterion(*batch)["loss_mask"].item()
        subset = min(possible, key=lambda s: abs(possible[s] - loss))
        assert loss == pytest.approx(possible[subset], rel=TOLERANCE)
        seen.append(subset)
    assert set(seen) == set(possible)
    # 15 of each are expected, with a standard deviation of less than 4.
    assert max(map(seen.count, possible)) < 35


def test_mask_iou_loss_of_a_random_subset_is_not_scaled_up(mask_batch):
    batch, head, of_positives = mask_batch
    criterion = _criterion(min_mask_iou_area=0, max_mask_positives=1)
    torch.manual_seed(0)
    for _ in range(20):
        loss = criterion(*batch, head)["loss_mask_iou"].item()
        assert np.isclose(loss, of_positives[:, 1], rtol=1e-4).any()


def test_all_positives_enter_the_mask_loss_up_to_the_limit(mask_batch):
    batch, _, of_positives = mask_batch
    for limit in (0, len(of_positives), len(of_positives) + 7):
        loss = _criterion(max_mask_positives=limit)(*batch)["loss_mask"].item()
        assert loss == pytest.approx(of_positives[:, 0].sum(), rel=TOLERANCE)
