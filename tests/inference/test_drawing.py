"""Drawings of the frames of a video, against Detectron2's own and against plain arithmetic."""

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Instances
from detectron2.utils.video_visualizer import VideoVisualizer

from yolact_d2.inference.drawing import VideoDrawer, draw_label, draw_mask
from yolact_d2.inference.labels import text_coverage

NAMES = ["cat", "dog"]


def found(masks, classes, scores=None):
    """Detections with these masks (N, H, W)."""
    instances = Instances(masks.shape[1:])
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.pred_classes = torch.tensor(classes)
    instances.scores = torch.linspace(0.9, 0.5, len(masks)) if scores is None else scores
    return instances


def blobs(rng, number, height=150, width=220):
    """Random masks (N, H, W): ellipses, at least 60 high."""
    masks = np.zeros((number, height, width), np.uint8)
    for mask in masks:
        center = rng.integers((50, 40), (width - 50, height - 40)).tolist()
        cv2.ellipse(mask, center, rng.integers(30, 45, 2).tolist(), 0, 0, 360, 1, -1)
    return masks.astype(bool)


def outline(masks):
    """The pixels (H, W) that lines along the edges of masks may touch."""
    grown = [
        cv2.morphologyEx(m.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5))) for m in masks
    ]
    return np.any(grown, axis=0)


def test_drawings_are_those_of_detectron2():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        masks = blobs(rng, 4)
        image = rng.integers(0, 255, (*masks.shape[1:], 3), np.uint8)
        instances = found(masks, [0, 1, 1, 0])
        metadata = Metadata(thing_classes=NAMES)
        np.random.seed(seed)
        figure = VideoVisualizer(metadata).draw_instance_predictions(image[:, :, ::-1], instances)
        np.random.seed(seed)
        drawing = VideoDrawer(metadata)(image, instances)
        difference = np.abs(figure.get_image()[:, :, ::-1].astype(int) - drawing).max(axis=2)
        same = difference <= 2
        # Labels take a few hundred pixels each.
        assert same[~outline(masks)].mean() > 0.88
        assert (~masks.any(axis=0) & ~same & ~outline(masks)).mean() < 0.01
        assert drawing.dtype == np.uint8 and not np.shares_memory(drawing, image)


def test_masks_are_tinted_by_half_and_keep_their_holes():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mask = blobs(rng, 2).any(axis=0) & ~blobs(rng, 1)[0]
        image = rng.integers(0, 255, (*mask.shape, 3), np.uint8)
        color = rng.integers(0, 255, 3).astype(float)
        drawing = image.copy()
        draw_mask(drawing, mask.view(np.uint8), color)
        edge = outline([mask])
        assert np.array_equal(drawing[~mask & ~edge], image[~mask & ~edge])
        tinted = image[mask & ~edge] / 2 + color / 2
        assert np.abs(drawing[mask & ~edge] - tinted).max() <= 1
        # The line is on the pixels of the mask that have a neighbour outside.
        line = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0)
        assert np.abs(drawing[line] - color).mean() < np.abs(image[line] - color).mean() / 3


def test_labels_lie_inside_the_image_and_darken_it():
    words = ("dog", "93%")
    for top, left, size, points in (
        (60, 100, 60, 10),
        (0, 0, 9, 7),
        (141, 211, 9, 7),
        (0, 190, 30, 10),
    ):
        mask = np.zeros((150, 220), np.uint8)
        mask[top : top + size, left : left + size] = 1
        image = np.full((150, 220, 3), 100, np.uint8)
        draw_label(image, words, mask, np.array([0.0, 0.0, 100.0]))
        rows, columns = np.nonzero((image != 100).any(axis=2))
        coverage = np.hstack([text_coverage(word, points) for word in words])
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == coverage.shape
        label = image[rows[0] : rows[-1] + 1, columns.min() : columns.max() + 1]
        assert (label[coverage == 0] == 20).all()
        assert np.abs(label[coverage == 1] - [127.0, 127, 255]).max() <= 1
        if size == 60:  # on the middle of the mask
            assert (rows[0], columns.min()) == (89, 129 - coverage.shape[1] // 2)
    tiny = np.full((8, 12, 3), 100, np.uint8)
    draw_label(tiny, words, np.ones((8, 12), np.uint8), np.zeros(3))
    assert (tiny != 100).any()


def test_small_objects_lie_on_large_ones_and_empty_masks_are_not_drawn():
    masks = np.zeros((3, 150, 220), bool)
    masks[0, 100:145, 100:145] = True
    masks[1, 5:, 5:215] = True
    image = np.full((150, 220, 3), 90, np.uint8)
    instances = found(masks, [0, 1, 0])
    np.random.seed(1)
    both = VideoDrawer(Metadata())(image, instances)
    large, small = both[20, 20] - 45.0, both[105, 105] - (both[20, 20] / 2)
    np.random.seed(1)
    drawer = VideoDrawer(Metadata())
    colors = drawer._colors(instances)
    assert np.abs(large - colors[1] / 2).max() <= 1 and np.abs(small - colors[0] / 2).max() <= 1
    assert np.array_equal(drawer(image, instances[2:]), image)
    assert np.array_equal(drawer(image, instances[:0]), image)


def test_an_object_keeps_its_colour_when_the_one_beside_it_is_gone():
    masks = np.zeros((2, 400, 600), bool)
    masks[0, 300:340, 500:540] = masks[1, 300:340, 545:585] = True
    instances = found(masks, [0, 0])
    for seed in range(5):
        np.random.seed(seed)
        drawer = VideoDrawer(Metadata(thing_classes=NAMES))
        first = drawer._colors(instances)
        assert (first[0] != first[1]).any()
        assert np.array_equal(drawer._colors(instances[1:])[0], first[1])
        assert np.array_equal(drawer._colors(instances), first)  # it was gone for one frame


def test_labels_say_class_and_score_and_are_beside_small_objects(monkeypatch):
    called = []
    monkeypatch.setattr(
        "yolact_d2.inference.drawing.draw_label", lambda image, words, *_: called.append(words)
    )
    image = np.zeros((150, 220, 3), np.uint8)
    masks = blobs(np.random.default_rng(0), 2)
    instances = found(masks, [1, 0], torch.tensor([0.5, 0.934]))
    VideoDrawer(Metadata(thing_classes=NAMES))(image, instances)
    VideoDrawer(Metadata())(image, instances)
    assert sorted(called) == [("0", "93%"), ("1", "50%"), ("cat", "93%"), ("dog", "50%")]
    monkeypatch.undo()
    # Below the object, or to its right at the bottom of the image.
    for top, expected in ((50, (70, 80)), (128, (128, 100))):
        mask = np.zeros((150, 220), np.uint8)
        mask[top : top + 20, 80:100] = 1
        labelled = np.full_like(image, 100)
        draw_label(labelled, ("dog",), mask, np.zeros(3))
        rows, columns = np.nonzero((labelled != 100).any(axis=2))
        assert (rows.min(), columns.min()) == expected
