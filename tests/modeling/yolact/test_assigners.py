"""Assignment of objects to anchors against plain loops."""

import numpy as np
import torch
from detectron2.structures import Boxes
from plain import box_iou

from yolact_d2.modeling.yolact.assigners import ImageAnchors, assign_atss, assign_task_aligned
from yolact_d2.modeling.yolact.matcher import BACKGROUND, FOREGROUND

NUM_CLASSES, TOPK = 3, 4
SIDES = (0.125, 0.25, 0.5)  # of the cells of the levels


def levels():
    """Anchors two cells wide, one for each cell."""
    anchors = []
    for side in SIDES:
        centers = torch.arange(side / 2, 1, side)
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        x, y = x.flatten(), y.flatten()
        anchors.append(Boxes(torch.stack([x - side, y - side, x + side, y + side], dim=1)))
    return anchors


def candidates(seed, num_objects):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    anchors = levels()
    boxes = Boxes.cat(anchors).tensor
    half = 0.01 + 0.3 * random(num_objects, 2) ** 2
    center = half + (1 - 2 * half) * random(num_objects, 2)
    return ImageAnchors(
        anchors,
        boxes + 0.1 * random(*boxes.shape) * torch.tensor([-1, -1, 1, 1]),
        random(len(boxes), NUM_CLASSES),
        Boxes(torch.cat([center - half, center + half], dim=1)),
        torch.randint(NUM_CLASSES, (num_objects,), generator=generator),
    )


def is_inside(point, box):
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def center(box):
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def as_numpy(found):
    return [x.tensor.numpy() for x in found.anchors], found.gt_boxes.tensor.numpy()


def owners(chosen, iou):
    """For each anchor the object with the largest IoU of those that chose it, -1 for none."""
    out = np.full(iou.shape[1], -1)
    for a in range(iou.shape[1]):
        wanting = [g for g in range(len(iou)) if a in chosen[g]]
        if wanting:
            out[a] = max(wanting, key=lambda g: iou[g, a])
    return out


def nearest_anchor(anchors, box):
    distances = [((center(anchor) - center(box)) ** 2).sum() for anchor in anchors]
    return int(np.argmin(distances))


def check(assignment, expected):
    foreground = (assignment.labels == FOREGROUND).numpy()
    assert set(assignment.labels.tolist()) <= {FOREGROUND, BACKGROUND}
    assert (foreground == (expected >= 0)).all()
    assert (assignment.matches.numpy()[foreground] == expected[foreground]).all()


def test_task_aligned_equals_a_plain_loop():
    num_shared = 0
    for seed in range(20):
        found = candidates(seed, num_objects=1 + seed % 6)
        per_level, gt_boxes = as_numpy(found)
        anchors, boxes, scores = np.concatenate(per_level), found.boxes.numpy(), found.scores
        iou = np.array([[box_iou(gt, box) for box in boxes] for gt in gt_boxes])
        alignment = np.array(
            [
                [scores[a, found.gt_classes[g]] ** 0.5 * iou[g, a] ** 6 for a in range(len(boxes))]
                for g in range(len(gt_boxes))
            ]
        )
        chosen = []
        for g, box in enumerate(gt_boxes):
            inside = {a for a, anchor in enumerate(anchors) if is_inside(center(anchor), box)}
            inside.add(nearest_anchor(anchors, box))
            chosen.append(sorted(inside, key=lambda a, g=g: -alignment[g, a])[:TOPK])
        expected = owners(chosen, iou)
        num_shared += sum(map(len, chosen)) - (expected >= 0).sum()
        assignment = assign_task_aligned(found, topk=TOPK)
        check(assignment, expected)
        for a, g in enumerate(expected):
            own = np.flatnonzero(expected == g)
            quality = alignment[g, a] / alignment[g, own].max() * iou[g, own].max()
            quality = quality if g >= 0 else 0
            np.testing.assert_allclose(assignment.quality[a], quality, rtol=1e-4, atol=1e-12)
    assert num_shared > 0  # some anchors are wanted by two objects


def test_atss_equals_a_plain_loop():
    num_positives = 0
    for seed in range(20):
        found = candidates(seed, num_objects=1 + seed % 6)
        per_level, gt_boxes = as_numpy(found)
        anchors = np.concatenate(per_level)
        iou = np.array([[box_iou(gt, anchor) for anchor in anchors] for gt in gt_boxes])
        chosen = []
        for g, box in enumerate(gt_boxes):
            near, first = [], 0
            for level in per_level:
                distances = [np.hypot(*(center(anchor) - center(box))) for anchor in level]
                near += [first + int(i) for i in np.argsort(distances)[:TOPK]]
                first += len(level)
            threshold = iou[g, near].mean() + iou[g, near].std(ddof=1)
            own = nearest_anchor(anchors, box)
            chosen.append(
                [
                    a
                    for a in near
                    if iou[g, a] >= threshold and (is_inside(center(anchors[a]), box) or a == own)
                ]
            )
        expected = owners(chosen, iou)
        check(assign_atss(found, topk=TOPK), expected)
        num_positives += (expected >= 0).sum()
    assert num_positives > 40


def test_without_objects_all_anchors_are_background():
    found = candidates(0, num_objects=0)
    for assign in (assign_atss, assign_task_aligned):
        assignment = assign(found)
        assert (assignment.labels == BACKGROUND).all() and not assignment.matches.any()
    assert not assign_task_aligned(found).quality.any()


def test_objects_smaller_than_cells_get_their_nearest_anchor():
    """And an object whose predicted boxes do not overlap it has anchors too."""
    found = candidates(0, num_objects=2)
    tiny = torch.tensor([[0.12, 0.12, 0.13, 0.13], [0.6, 0.6, 0.9, 0.9]])
    found = found._replace(gt_boxes=Boxes(tiny), boxes=torch.zeros_like(found.boxes))
    assignment = assign_task_aligned(found)
    anchors = Boxes.cat(found.anchors).tensor.numpy()
    own = nearest_anchor(anchors, tiny[0].numpy())
    assert (assignment.matches[assignment.labels == FOREGROUND] == 0).sum() == 1
    assert assignment.labels[own] == FOREGROUND and assignment.matches[own] == 0
    assert (assignment.matches[assignment.labels == FOREGROUND] == 1).sum() > 1
