"""Images of extreme sizes and contents are used within bounded memory; errors name the file."""

import numpy as np
import pytest
from coco_examples import annotation, rectangle, rle
from detectron2.data import MapDataset
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

from yolact_d2.data import UnreadableImage, YOLACTDatasetMapper
from yolact_d2.data.augmentation import ExpandTransform, LimitSize, RandomExpand

SIDE = 64


@pytest.fixture
def cfg(shapes_cfg):
    """The small model, with all augmentations."""
    shapes_cfg.merge_from_list(
        ["INPUT.IMAGE_SIZE", SIDE, "INPUT.AUG.PHOTOMETRIC", True, "INPUT.AUG.EXPAND", True,
         "INPUT.AUG.CROP", True, "MODEL.WEIGHTS", ""]
    )  # fmt: skip
    return shapes_cfg


def _record(folder, width, height, boxes, crowd=0):
    """An image whose objects are boxes (x, y, w, h) of one colour."""
    path = folder / f"{width}x{height}_{len(boxes)}_{crowd}.png"
    image = np.full((height, width, 3), 100, np.uint8)
    for x, y, w, h in boxes:
        image[y : y + h, x : x + w] = (250, 10, 10)
    Image.fromarray(image).save(path)
    return {
        "file_name": str(path), "width": width, "height": height, "image_id": width,
        "annotations": [
            annotation(box, bbox_mode=BoxMode.XYWH_ABS, category_id=i % 4, iscrowd=crowd)
            for i, box in enumerate(boxes)
        ],
    }  # fmt: skip


GRID = [(x, y, 7, 7) for y in range(0, 250, 10) for x in range(0, 200, 10)]
# (width, height), boxes, and whether they are crowd regions.
EXTREMES = {
    "1 x 1": ((1, 1), [(0, 0, 1, 1)], 0),
    "10000 x 20": ((10000, 20), [(2500, 0, 5000, 20)], 0),
    "20 x 10000": ((20, 10000), [(4, 100, 12, 9000)], 0),
    "500 objects": ((200, 250), GRID, 0),
    "crowds only": ((200, 250), GRID[:5], 1),
}


@pytest.mark.parametrize("kind", EXTREMES)
def test_extreme_images_are_used(tmp_path, cfg, kind):
    size, boxes, crowd = EXTREMES[kind]
    record = _record(tmp_path, *size, boxes, crowd)
    mapper = YOLACTDatasetMapper(
        True, augmentations=[T.Resize((SIDE, SIDE))], image_format="RGB", min_box_size=0
    )
    mapped = mapper(record)
    assert mapped["image"].shape == (3, SIDE, SIDE)
    instances = mapped["instances"]
    assert instances.gt_iscrowd.tolist() == [bool(crowd)] * len(boxes)
    expected = np.reshape([[x, y, x + w, y + h] for x, y, w, h in boxes], (-1, 4))
    scale = SIDE / np.array([*size, *size])
    np.testing.assert_allclose(instances.gt_boxes.tensor, expected * scale, rtol=1e-5)
    if 0 < len(boxes) < 500:  # 500 objects have only few pixels each
        red = mapped["image"][0] > 175
        covered = instances.gt_masks.tensor.any(dim=0)
        assert (red & covered).sum() >= 0.9 * (red | covered).sum() > 0

    for jitter in ([], [0.1, 2.0]):
        cfg.INPUT.AUG.SCALE_JITTER = jitter
        mapper = YOLACTDatasetMapper(cfg)
        for seed in range(8 if len(boxes) < 500 else 2):
            np.random.seed(seed)
            mapped = mapper(record)
            assert mapped["image"].shape == (3, SIDE, SIDE) and mapped["image"].isfinite().all()
            assert len(mapped["instances"]) <= len(boxes)

    evaluated = YOLACTDatasetMapper(cfg, is_train=False)(record)
    assert evaluated["image"].shape == (3, *size[::-1])
    assert (evaluated["width"], evaluated["height"]) == size


def test_large_images_are_shrunk():
    for size, limit, expected in (
        ((300, 400), 400, (300, 400)),
        ((1, 1), 1, (1, 1)),
        ((400, 300), 399, (399, 299)),
        ((300, 1000), 100, (30, 100)),
        ((10, 4000), 100, (1, 100)),
    ):
        ramp = np.linspace(0, 255, size[1])[None, :, None]
        image = np.broadcast_to(ramp, (*size, 3)).astype(np.uint8)
        result = LimitSize(limit).get_transform(image).apply_image(image)
        assert result.dtype == np.uint8 and result.shape == (*expected, 3)
        if size == expected:
            assert result is image
        else:
            centres = (np.arange(expected[1]) + 0.5) / expected[1]
            assert np.abs(result - 255 * centres[None, :, None]).max() < 3


@pytest.mark.parametrize("size", [(150, 200), (300, 120), (10, 390), (1, 1)])
def test_expansion_has_a_limit(size):
    fill, limit = (7.0, 8.0, 9.0), 400
    image = np.full((*size, 3), 200, np.float32)
    shares, shrunk = [], 0
    for seed in range(20):
        np.random.seed(seed)
        unlimited = RandomExpand(fill, prob=1.0).get_transform(image)
        whole, next_number = unlimited.apply_image(image).shape[:2], np.random.rand()
        np.random.seed(seed)
        transform = RandomExpand(fill, prob=1.0, max_side=limit).get_transform(image)
        if max(whole) <= limit:
            assert type(transform) is ExpandTransform and vars(transform) == vars(unlimited)
            assert np.random.rand() == next_number
            continue
        shrunk += 1
        canvas = transform.apply_image(image)
        assert canvas.dtype == np.float32 and limit - 4 < max(canvas.shape[:2]) <= limit
        # The image covers the same share of the canvas as without the limit.
        shares.append((canvas > 190).all(axis=2).mean() * np.prod(whole) / np.prod(size))
    assert (shrunk > 5) == (size != (1, 1))
    if min(size) > 100:
        np.testing.assert_allclose(shares, 1, atol=0.05)


@pytest.mark.parametrize("as_rle", [False, True])
def test_objects_follow_a_large_image_within_bounded_memory(tmp_path, cfg, monkeypatch, as_rle):
    """A 3000 x 300 image is shrunk to 2560 pixels, and again when it is expanded."""
    seen = []

    class RecordingAugInput(T.AugInput):
        def __setattr__(self, name, value):
            if name == "image":
                seen.append((value.shape, value.dtype))
            super().__setattr__(name, value)

    monkeypatch.setattr(T, "AugInput", RecordingAugInput)
    record = _record(tmp_path, 3000, 300, [(600, 100, 1500, 150)])
    if as_rle:
        mask = rectangle(600, 100, 1500, 150, size=(3000, 300))
        record["annotations"][0]["segmentation"] = rle(mask)
    cfg.merge_from_list(["INPUT.AUG.PHOTOMETRIC", False, "INPUT.IMAGE_SIZE", 256])
    mapper = YOLACTDatasetMapper(cfg)
    for seed in range(10):
        seen.clear()
        np.random.seed(seed)
        mapped = mapper(record)
        floats = [max(shape) for shape, dtype in seen if dtype == np.float32]
        assert seen[0] == ((300, 3000, 3), np.uint8)
        assert len(floats) >= 4 and 2556 <= max(floats) <= 2560
        [mask] = mapped["instances"].gt_masks.tensor.numpy()
        red = (mapped["image"][0] > 190).numpy()
        assert (red & mask).sum() >= 0.93 * (red | mask).sum()
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(mapped["instances"].gt_boxes.tensor[0], tight, atol=1.5)


def test_errors_in_a_worker_name_the_file(tmp_path, cfg):
    records = [_record(tmp_path, width, 250, GRID[:3]) for width in (150, 160, 170)]
    unreadable, broken, resized = records
    with open(unreadable["file_name"], "r+b") as file:
        file.truncate(300)
    del broken["annotations"][1]["segmentation"]
    resized["width"] += 1
    dataset = MapDataset(records, YOLACTDatasetMapper(cfg))
    items = iter(DataLoader(dataset, num_workers=1, collate_fn=list))
    for record, kind, message in (
        (unreadable, UnreadableImage, "cannot be read"),
        (broken, ValueError, "segmentation"),
        (resized, SizeMismatchError, "171"),
    ):
        with pytest.raises(kind) as error:
            next(items)
        assert type(error.value) is kind and record["file_name"] in str(error.value)
        assert message in str(error.value)
    assert next(items, None) is None  # ends the worker
