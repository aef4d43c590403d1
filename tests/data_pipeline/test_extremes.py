"""Images of extreme sizes and contents are used, in bounded memory; no worker dies in silence."""

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    MapDataset,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util
from torch.utils.data import DataLoader

from yolact_d2.data import ImageMapper, UnreadableImage, YOLACTDatasetMapper, drop_unusable

SIDE = 64


@pytest.fixture
def cfg(shapes_cfg):
    """The small model, with all of the augmentation."""
    shapes_cfg.merge_from_list(
        ["INPUT.IMAGE_SIZE", SIDE, "INPUT.AUG.PHOTOMETRIC", True, "INPUT.AUG.EXPAND", True,
         "INPUT.AUG.CROP", True, "MODEL.WEIGHTS", ""]
    )  # fmt: skip
    return shapes_cfg


def _record(folder, width, height, boxes, crowd=0, rle=False):
    """A picture with the boxes (x, y, w, h), all of one colour, as objects."""
    path = folder / f"{width}x{height}_{len(boxes)}_{crowd}.png"
    picture = np.full((height, width, 3), 100, np.uint8)
    annotations = []
    for i, (x, y, w, h) in enumerate(boxes):
        picture[y : y + h, x : x + w] = (250, 10, 10)
        annotations.append(
            {
                "bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 4,
                "iscrowd": crowd, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )  # fmt: skip
    Image.fromarray(picture).save(path)
    return {
        "file_name": str(path), "width": width, "height": height, "image_id": width,
        "annotations": annotations,
    }  # fmt: skip


GRID = [(x, y, 7, 7) for y in range(0, 250, 10) for x in range(0, 200, 10)]
# (width, height), boxes, crowd, and how many objects there are without augmentation.
EXTREMES = {
    "1 x 1": ((1, 1), [(0, 0, 1, 1)], 0, 1),
    "10000 x 20": ((10000, 20), [(2500, 0, 5000, 20)], 0, 1),
    "20 x 10000": ((20, 10000), [(4, 100, 12, 9000)], 0, 1),
    "500 objects": ((200, 250), GRID, 0, 500),
    "crowds only": ((200, 250), GRID[:5], 1, 5),
    "no objects": ((200, 250), [], 0, 0),
}


def _without_augmentation():
    return YOLACTDatasetMapper(
        augmentations=[T.Resize((SIDE, SIDE))], image_format="RGB", min_box_size=0
    )


@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes_are_used(tmp_path, cfg, kind):
    size, boxes, crowd, number = EXTREMES[kind]
    [record] = drop_unusable([_record(tmp_path, *size, boxes, crowd)])
    plain = _without_augmentation()(record)
    assert plain["image"].shape == (3, SIDE, SIDE)
    instances = plain["instances"]
    assert len(instances) == number and instances.gt_iscrowd.tolist() == [bool(crowd)] * number
    expected = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    scale = SIDE / np.array([*size, *size])
    np.testing.assert_allclose(
        instances.gt_boxes.tensor, np.reshape(expected, (-1, 4)) * scale, rtol=1e-5
    )
    if number and kind != "500 objects":  # of a few pixels
        red = plain["image"][0] > 175
        covered = instances.gt_masks.tensor.any(dim=0)
        assert (red & covered).sum() >= 0.9 * (red | covered).sum() > 0

    mapper = YOLACTDatasetMapper(cfg)
    for seed in range(8):
        np.random.seed(seed)
        mapped = mapper(record)
        assert mapped["image"].shape == (3, SIDE, SIDE) and mapped["image"].isfinite().all()
        assert len(mapped["instances"]) <= number

    evaluated = ImageMapper(cfg)(record)
    assert evaluated["image"].shape == (3, *size[::-1])
    assert (evaluated["width"], evaluated["height"]) == size


def test_the_model_takes_them_all(tmp_path, cfg):
    """Together, in one batch, as the loader may give them."""
    records = [
        _record(tmp_path, *size, boxes, crowd) for size, boxes, crowd, _ in EXTREMES.values()
    ]
    torch.manual_seed(0)
    np.random.seed(0)
    model = build_model(cfg)
    mapper = _without_augmentation()
    losses = model([mapper(record) for record in records])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] > 0
    model.eval()
    with torch.no_grad():
        found = model([ImageMapper(cfg)(record) for record in records])
    for record, result in zip(records, found):
        instances = result["instances"]
        assert instances.image_size == (record["height"], record["width"])
        assert instances.pred_masks.shape[1:] == instances.image_size


@pytest.mark.parametrize("size", [(5400, 2700), (2561, 40), (200, 5000), (2000, 1900)])
def test_float_memory_is_bounded(tmp_path, cfg, monkeypatch, size):
    seen = []

    class Recorded(T.AugInput):
        def __setattr__(self, name, value):
            if name == "image":
                seen.append((value.shape, value.dtype))
            super().__setattr__(name, value)

    monkeypatch.setattr(T, "AugInput", Recorded)
    width, height = size
    record = _record(tmp_path, *size, [(width // 4, height // 4, width // 2, height // 2)])
    mapper = YOLACTDatasetMapper(cfg)
    limit = 2560
    largest = []
    for seed in range(5):
        seen.clear()
        np.random.seed(seed)
        mapper(record)
        floats = [shape for shape, dtype in seen if dtype != np.uint8]
        assert seen[0] == ((height, width, 3), np.uint8) and len(floats) >= 4
        largest.append(max(max(shape) for shape in floats))
    assert limit - 4 <= max(largest) <= limit


@pytest.mark.parametrize("rle", [False, True])
def test_objects_follow_a_picture_that_is_reduced(tmp_path, cfg, rle):
    """Through the limit on the picture and that on the canvas, as the picture shows."""
    width, height = 3000, 900
    record = _record(tmp_path, width, height, [(600, 300, 1500, 450)])
    if rle:
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[300:750, 600:2100] = 1
        record["annotations"][0]["segmentation"] = mask_util.encode(mask)
    cfg.merge_from_list(["INPUT.AUG.PHOTOMETRIC", False, "INPUT.IMAGE_SIZE", 256])
    mapper = YOLACTDatasetMapper(cfg)
    for seed in range(10):
        np.random.seed(seed)
        mapped = mapper(record)
        [mask] = mapped["instances"].gt_masks.tensor.numpy()
        red = (mapped["image"][0] > 190).numpy()
        assert (red & mask).sum() >= 0.93 * (red | mask).sum()
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(mapped["instances"].gt_boxes.tensor[0], tight, atol=1.5)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_images_of_crowds_only(tmp_path, cfg, filter_empty):
    crowd = _record(tmp_path, 200, 250, GRID[:3], crowd=1)
    sound = _record(tmp_path, 150, 250, GRID[:3])
    DatasetCatalog.register("crowds", lambda: [crowd, sound])
    try:
        dicts = get_detection_dataset_dicts(["crowds"], filter_empty=filter_empty)
    finally:
        DatasetCatalog.remove("crowds")
    loader = build_detection_train_loader(
        drop_unusable(dicts), mapper=YOLACTDatasetMapper(cfg), total_batch_size=2, num_workers=0
    )
    seen = set()
    for batch, _ in zip(loader, range(4)):
        seen |= {item["image_id"] for item in batch}
    assert seen == ({150} if filter_empty else {150, 200})


def test_a_worker_says_of_which_file_it_dies(tmp_path, cfg):
    unreadable, broken = (_record(tmp_path, width, 250, GRID[:3]) for width in (150, 160))
    with open(unreadable["file_name"], "r+b") as file:
        file.truncate(300)
    broken["annotations"][1]["bbox"] = None
    dataset = MapDataset([unreadable, broken], YOLACTDatasetMapper(cfg))
    items = iter(DataLoader(dataset, num_workers=1, collate_fn=list))
    for record, kind in ((unreadable, UnreadableImage), (broken, ValueError)):
        with pytest.raises(kind) as error:
            next(items)
        assert type(error.value) is kind and record["file_name"] in str(error.value)
