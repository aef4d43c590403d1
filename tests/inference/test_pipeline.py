"""Stages that run ahead in threads, and whole runs with a stand-in for the model."""

import itertools
import json
import threading
import time

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from plain import eventually
from videos import HEIGHT, WIDTH, write_video

from yolact_d2.inference import Video, coco_results, get_draw_function, predict_and_draw
from yolact_d2.inference.pipeline import prefetch
from yolact_d2.inference.results import mask_to_polygons
from yolact_d2.inference.sources import Frame


def test_prefetch_is_bounded():
    taken = []
    items = prefetch((taken.append(i) or i for i in range(100)), 3)
    assert next(items) == 0
    assert eventually(lambda: len(taken) == 4)
    time.sleep(0.05)
    assert len(taken) == 4
    items.close()


def test_stages_work_at_the_same_time():
    """Each of two stages holds an item until the other holds one too."""
    both = threading.Barrier(2, timeout=10)

    def meet(i):
        if 0 < i < 5:
            both.wait()
        return i

    first = prefetch(map(meet, range(6)), 1)
    # The second stage works on item i while the first works on item i + 1.
    second = prefetch((meet(i + 1) - 1 if i < 4 else i for i in first), 1)
    assert list(second) == list(range(6))


def test_errors_come_after_the_items_before_them():
    def items():
        yield 1
        yield 2
        raise OSError("broken")

    seen = []
    with pytest.raises(OSError, match="broken"):
        for item in prefetch(prefetch(items(), 1), 2):
            seen.append(item)
    assert seen == [1, 2]


def test_closing_ends_the_threads():
    before = threading.active_count()
    frames = (Frame(i, "video", np.zeros((2, 2, 3), np.uint8)) for i in itertools.count())
    results = predict_and_draw(CountingPredictor(), frames, None, 2)
    next(results)
    assert threading.active_count() == before + 3
    results.close()
    assert threading.active_count() == before


class CountingPredictor:
    def __init__(self):
        self.batch_sizes = []

    def predict(self, images):
        self.batch_sizes.append(len(images))
        return [int(image[0, 0, 0]) for image in images]


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_frames_are_predicted_in_batches_and_drawn(batch_size, sizes):
    frames = [Frame(i, "video", np.full((2, 2, 3), 10 * i, np.uint8)) for i in range(5)]
    predictor = CountingPredictor()
    results = list(predict_and_draw(predictor, frames, lambda image, x: image + x, batch_size))
    assert predictor.batch_sizes == sizes
    assert [frame.image_id for frame, _, _ in results] == list(range(5))
    assert [instances for _, instances, _ in results] == [0, 10, 20, 30, 40]
    assert [drawing.max() for _, _, drawing in results] == [0, 20, 40, 60, 80]


METADATA = Metadata(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={7: 0, 1000: 1})


def square(x):
    """A dog of 20 x 20 pixels at column x."""
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([[x, 10.0, x + 20, 30]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([1])
    instances.pred_masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    instances.pred_masks[0, 10:30, x : x + 20] = True
    return instances


class SquarePredictor:
    """Finds a square at column i of frame i."""

    metadata = METADATA

    def predict(self, images):
        return [square(round(image.mean() / 20)) for image in images]


def test_results_of_a_video_in_coco_format(tmp_path):
    video = Video(write_video(tmp_path / "a.avi", 10))
    results = []
    for frame, instances, drawing in predict_and_draw(SquarePredictor(), video, None, 3):
        assert drawing is frame.image
        results += coco_results(frame, instances, METADATA)
    assert [result["image_id"] for result in results] == list(range(10))
    for i, result in enumerate(results):
        assert result["bbox"] == [i, 10, 20, 20]
        assert (result["category_id"], result["category_name"]) == (1000, "dog")
        assert result["file_name"] == "a.avi"
        assert result["score"] == pytest.approx(0.9)
        mask = mask_util.decode(result["segmentation"])
        assert mask.shape == (HEIGHT, WIDTH) and mask.sum() == mask[10:30, i : i + 20].sum() == 400


def round_trip(polygons, mask):
    """The mask that pycocotools makes of polygons."""
    rles = mask_util.frPyObjects(polygons, *mask.shape)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


def test_polygons_keep_every_pixel_holes_included():
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(y - 25, x - 40)
    two_holes = (radius < 20) & (np.hypot(y - 25, x - 32) > 4) & (np.hypot(y - 20, x - 48) > 5)
    rng = np.random.default_rng(0)
    masks = [radius < 20, (radius < 20) & (radius > 9), radius < 1, radius < 99, two_holes]
    masks += [rng.random((12, 17)) < i / 9 for i in range(1, 9)]
    for mask in masks:
        polygons = mask_to_polygons(mask)
        assert all(len(polygon) >= 8 for polygon in polygons)
        assert np.array_equal(round_trip(polygons, mask), mask)
    assert [len(mask_to_polygons(mask)) for mask in masks[:5]] == [1, 2, 1, 1, 3]
    square = np.pad(np.ones((3, 2), bool), 4)
    assert sorted(zip(*[iter(mask_to_polygons(square)[0])] * 2)) == [(4, 4), (4, 7), (6, 4), (6, 7)]
    assert mask_to_polygons(np.zeros((3, 3), bool)) == []


def test_results_with_polygons_have_no_objects_without_pixels(tmp_path):
    instances = Instances.cat([square(5), square(9)])
    instances.pred_masks[0] = False
    frame = Frame(3, "a.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (result,) = coco_results(frame, instances, METADATA, polygons=True)
    assert result["bbox"] == [9, 10, 20, 20]
    mask = round_trip(result["segmentation"], instances.pred_masks[1])
    assert np.array_equal(mask, instances.pred_masks[1])
    json.dumps(result)
    assert coco_results(frame, instances[:1], METADATA, polygons=True) == []
    assert len(coco_results(frame, instances, METADATA)) == 2


def test_objects_keep_their_colour_in_a_video(tmp_path):
    draw = get_draw_function(SquarePredictor(), Video(write_video(tmp_path / "a.avi", 1)))
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    drawings = [draw(image, square(x)) for x in range(9)]
    # Inside the square, away from its outline and its name.
    colours = [
        drawing[12:15, x + 3 : x + 17].mean(axis=(0, 1)) for x, drawing in enumerate(drawings)
    ]
    assert np.ptp(colours, axis=0).max() < 3
    assert abs(colours[0] - 128).max() > 10
    assert (image == 128).all() and drawings[0].shape == image.shape
    assert (draw(image, square(0)[:0]) == image).all()
