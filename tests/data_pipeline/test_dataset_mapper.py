"""The mapper: image, boxes and masks stay together through augmentation, and what is dropped."""

import copy
import itertools
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, BoxMode
from PIL import Image
from pycocotools import mask as mask_api

from yolact_d2 import add_yolact_config
from yolact_d2.data import YOLACTDatasetMapper
from yolact_d2.data.augmentation import PatchTransform

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "Base-YOLACT.yaml"
SIDE = 192
SEEDS = range(60)
HEIGHT, WIDTH = 150, 200
# Convex, apart from each other, the third at the lower border. The class is the index.
POLYGONS = [
    [(85.0, 45.0), (67.5, 75.3), (32.5, 75.3), (15.0, 45.0), (32.5, 14.7), (67.5, 14.7)],
    [(110.5, 15.2), (185.3, 30.1), (130.7, 75.6)],
    [(100.0, 100.0), (190.0, 95.0), (180.0, 150.0), (120.0, 150.0)],
    [(20.2, 100.3), (45.1, 96.4), (40.6, 125.7), (15.8, 120.2)],
    [(60.0, 90.0), (88.0, 92.0), (85.0, 130.0), (58.0, 128.0)],
]
CROWD = 4
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
BACKGROUND = (124, 117, 104)  # nearly the mean that expansion fills with


def _cfg(**aug):
    """Without augmentation but for `aug`, keys of INPUT.AUG, and "flip"."""
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.INPUT.IMAGE_SIZE = SIDE
    cfg.INPUT.RANDOM_FLIP = aug.pop("flip", "none")
    for key in ("PHOTOMETRIC", "EXPAND", "CROP"):
        cfg.INPUT.AUG[key] = aug.get(key, False)
    return cfg


def _moving_mapper(flip="horizontal"):
    """With everything that moves pixels, and nothing that changes colours."""
    return YOLACTDatasetMapper(_cfg(EXPAND=True, CROP=True, flip=flip))


def _inside(polygon, height=HEIGHT, width=WIDTH):
    """The pixels (bool, H x W) whose centre is inside a convex polygon."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    points = np.array(polygon)
    sides = [
        (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0))
    ]
    return np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)


def _rle(mask):
    return mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))


def _tight_box(polygon):
    points = np.array(polygon)
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def _box_polygon(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _annotation(box, category=0, **kwargs):
    """Of an object that fills its box, XYXY."""
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "segmentation": [_box_polygon(*box)],
        **kwargs,
    }


def _annotations(rle=False):
    """Of POLYGONS. The crowd region is always RLE, as in COCO."""
    annotations = [
        {
            "bbox": _tight_box(polygon),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": i,
            "iscrowd": int(i == CROWD),
            "segmentation": [np.array(polygon).ravel().tolist()],
        }
        for i, polygon in enumerate(POLYGONS)
    ]
    for i in range(len(POLYGONS)) if rle else [CROWD]:
        annotations[i]["segmentation"] = _rle(_inside(POLYGONS[i]))
    return annotations


def _write(path, picture):
    cv2.imwrite(str(path), picture[..., ::-1])
    return str(path)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A file that shows POLYGONS in COLOURS."""
    image = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    for polygon, colour in zip(POLYGONS, COLOURS):
        image[_inside(polygon)] = colour
    return _write(tmp_path_factory.mktemp("picture") / "objects.png", image)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """A file of the same size in which red is the column, green the row, and blue 255."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    image[..., 0], image[..., 1] = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
    return _write(tmp_path_factory.mktemp("ramps") / "ramps.png", image)


def _record(file_name, annotations):
    return {
        "file_name": file_name,
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 7,
        "annotations": annotations,
    }


def _map(mapper, file_name, annotations, seed=0):
    np.random.seed(seed)
    return mapper(_record(file_name, annotations))


def _where_points_went(image):
    """From ramps as augmented, the factors (2,) and shifts (2,) that took x and y there."""
    image = image.numpy()
    # The fill is less blue. Close to its border and that of the image values are not linear.
    pure = image[2] > 254.9
    rows, columns = np.flatnonzero(pure.any(axis=1))[4:-4], np.flatnonzero(pure.any(axis=0))[4:-4]
    x = np.polyfit(image[0, rows[0], columns] + 0.5, columns + 0.5, 1)
    y = np.polyfit(image[1, rows, columns[0]] + 0.5, rows + 0.5, 1)
    return np.stack([x, y], axis=1)


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_boxes_and_what_is_kept_follow_the_image(ramps, flip):
    mapper, annotations = _moving_mapper(flip), _annotations()
    boxes = np.array([a["bbox"] for a in annotations])
    mirrored, dropped, cut = np.zeros(2, bool), 0, 0
    for seed in SEEDS:
        result = _map(mapper, ramps, annotations, seed)
        factors, shifts = _where_points_went(result["image"])
        mirrored |= factors < 0
        corners = boxes.reshape(-1, 2, 2) * factors + shifts
        corners.sort(axis=1)
        centres, clipped = corners.mean(axis=1), corners.clip(0, SIDE)
        kept = ((centres > 0) & (centres < SIDE)).all(axis=1)
        kept &= (clipped[:, 1] - clipped[:, 0] > 4).all(axis=1)

        instances = result["instances"]
        assert instances.image_size == (SIDE, SIDE)
        assert instances.gt_classes.tolist() == np.flatnonzero(kept).tolist()
        expected = clipped[kept].reshape(-1, 4)
        np.testing.assert_allclose(instances.gt_boxes.tensor.numpy(), expected, atol=0.05)
        assert (instances.gt_iscrowd == (instances.gt_classes == CROWD)).all()
        dropped += (~kept).sum()
        cut += (np.abs(clipped - corners)[kept] > 1).any(axis=(1, 2)).sum()
    assert mirrored.tolist() == [flip == "horizontal", flip == "vertical"]
    assert dropped > 30 and cut > 20


def _iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def _centroid(mask):
    return np.argwhere(mask).mean(axis=0)


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize("rle", [False, True], ids=["polygons", "rle"])
def test_masks_cover_the_pixels_of_their_object(picture, rle, flip):
    mapper, annotations = _moving_mapper(flip), _annotations(rle)
    palette = np.array([BACKGROUND, *COLOURS], np.float32)
    compared, displacements = 0, []
    for seed in SEEDS:
        result = _map(mapper, picture, annotations, seed)
        image, instances = result["image"].numpy(), result["instances"]
        distances = np.linalg.norm(image[None] - palette[:, :, None, None], axis=1)
        colours = distances.argmin(axis=0) - 1
        assert set(instances.gt_classes.tolist()) <= set(np.unique(colours))
        for category, mask, box in zip(
            instances.gt_classes.tolist(),
            instances.gt_masks.tensor.numpy(),
            instances.gt_boxes.tensor.numpy(),
        ):
            shown = colours == category
            if shown.sum() > 100:
                compared += 1
                assert _iou(mask, shown) > 0.93
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            outside = np.concatenate([box[:2] - tight[:2], tight[2:] - box[2:]])
            assert outside.max() < 1.5
            if box.min() > 1 and box.max() < SIDE - 1:
                # A tip thinner than a pixel is in no mask.
                assert outside.min() > -2.5
                displacements.append(_centroid(mask) - _centroid(shown))
    assert compared > 150 and len(displacements) > 100
    assert np.abs(np.mean(displacements, axis=0)).max() < 0.1  # of a pixel, along y and x


def test_polygons_and_rle_give_the_same(picture):
    mapper, compared = _moving_mapper(), 0
    for seed in SEEDS:
        polygons, rle = (
            _map(mapper, picture, _annotations(rle), seed)["instances"] for rle in (False, True)
        )
        assert polygons.gt_classes.tolist() == rle.gt_classes.tolist()
        torch.testing.assert_close(polygons.gt_boxes.tensor, rle.gt_boxes.tensor)
        for a, b in zip(polygons.gt_masks.tensor, rle.gt_masks.tensor):
            if a.sum() > 400:
                compared += 1
                assert _iou(a, b) > 0.95
    assert compared > 60


def test_xywh_boxes_give_the_same(picture):
    mapper = _moving_mapper()
    xywh = _annotations()
    for annotation in xywh:
        x0, y0, x1, y1 = annotation["bbox"]
        annotation.update(bbox=[x0, y0, x1 - x0, y1 - y0], bbox_mode=BoxMode.XYWH_ABS)
    for seed in range(10):
        a = _map(mapper, picture, _annotations(), seed)
        b = _map(mapper, picture, xywh, seed)
        np.testing.assert_array_equal(a["image"], b["image"])
        assert a["instances"].gt_classes.tolist() == b["instances"].gt_classes.tolist()
        torch.testing.assert_close(
            a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_image_without_augmentation(tmp_path, image_format):
    image = np.random.default_rng(0).integers(0, 256, size=(40, 40, 3), dtype=np.uint8)
    cfg = _cfg()
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.FORMAT = 40, image_format
    result = YOLACTDatasetMapper(cfg)({"file_name": _write(tmp_path / "a.png", image)})
    assert result["image"].dtype == torch.float32 and result["image"].is_contiguous()
    expected = image if image_format == "RGB" else image[..., ::-1]
    np.testing.assert_array_equal(result["image"], expected.transpose(2, 0, 1))


def test_all_augmentations_give_float_images_of_the_size(picture):
    cfg = _cfg(PHOTOMETRIC=True, EXPAND=True, CROP=True, flip="horizontal")
    mapper, extremes = YOLACTDatasetMapper(cfg), []
    for seed in range(20):
        image = _map(mapper, picture, _annotations(), seed)["image"]
        assert image.dtype == torch.float32 and image.shape == (3, SIDE, SIDE)
        assert image.isfinite().all()
        extremes += [image.min(), image.max()]
    assert min(extremes) < -1 and max(extremes) > 256  # what 8 bits could not hold


def test_values_without_augmentation(picture):
    instances = _map(YOLACTDatasetMapper(_cfg()), picture, _annotations())["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 2, 3, 4]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_iscrowd.tolist() == [False] * 4 + [True]
    assert instances.gt_iscrowd.dtype == torch.bool
    scale = np.array([SIDE / WIDTH, SIDE / HEIGHT])
    expected = np.array([_tight_box(polygon) for polygon in POLYGONS]) * np.tile(scale, 2)
    np.testing.assert_allclose(instances.gt_boxes.tensor, expected, rtol=1e-5)
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.dtype == torch.bool
    for polygon, mask in zip(POLYGONS, instances.gt_masks.tensor.numpy()):
        assert _iou(mask, _inside(np.array(polygon) * scale, SIDE, SIDE)) > 0.95


def test_centre_outside_a_patch_means_dropped(picture):
    patch = PatchTransform(50, 30, 100, 80, WIDTH, HEIGHT)  # x in 50..150, y in 30..110
    mapper = YOLACTDatasetMapper(
        augmentations=[patch, T.ResizeTransform(80, 100, 160, 200)],
        image_format="RGB",
        min_box_size=4,
    )
    kept = {
        (30.0, 40.0, 72.0, 60.0): (0, 20, 44, 60),  # cut at the left
        (60.0, 40.0, 80.0, 70.0): (20, 20, 60, 80),  # whole
        (140.0, 100.0, 158.0, 118.0): (180, 140, 200, 160),  # cut at the lower right
        (80.0, 10.0, 90.0, 52.0): (60, 0, 80, 44),  # cut at the top
    }
    dropped = [
        (30.0, 40.0, 70.0, 60.0),  # centre on the left border
        (140.0, 40.0, 160.0, 60.0),  # on the right one
        (80.0, 20.0, 90.0, 40.0),  # on the upper one
        (80.0, 100.0, 90.0, 120.0),  # on the lower one
        (140.0, 60.0, 162.0, 90.0),  # to the right, much of the object visible
        (80.0, 100.0, 90.0, 122.0),  # below
        (0.0, 0.0, 20.0, 20.0),  # nothing visible
    ]
    boxes = [*kept, *dropped]
    annotations = [_annotation(list(box), i) for i, box in enumerate(boxes)]
    annotations += [_annotation(list(box), i, iscrowd=1) for i, box in enumerate(boxes)]
    instances = _map(mapper, picture, annotations)["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 2, 3] * 2
    assert instances.gt_iscrowd.tolist() == [False] * 4 + [True] * 4
    np.testing.assert_allclose(instances.gt_boxes.tensor, [*kept.values()] * 2, atol=1e-4)
    for (x0, y0, x1, y1), mask in zip(kept.values(), instances.gt_masks.tensor.numpy()):
        expected = np.zeros((160, 200), bool)
        expected[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(mask, expected)


def test_crop_looks_for_objects_not_crowds(picture):
    """A small object in a corner, and a crowd region that nearly every patch would hold."""
    mapper = YOLACTDatasetMapper(_cfg(CROP=True))
    crowd = _annotation([60.0, 40.0, 140.0, 110.0], 1, iscrowd=1)
    uncropped = np.array(crowd["bbox"]) * np.tile([SIDE / WIDTH, SIDE / HEIGHT], 2)
    crops = 0
    for seed in SEEDS:
        both = [crowd, _annotation([20.0, 20.0, 60.0, 50.0], 0)]
        instances = _map(mapper, picture, both, seed)["instances"]
        assert 0 in instances.gt_classes
        crops += len(instances) == 1 or not np.allclose(instances.gt_boxes.tensor[0], uncropped)
        instances = _map(mapper, picture, [crowd], seed)["instances"]
        np.testing.assert_allclose(instances.gt_boxes.tensor, [uncropped], rtol=1e-5)
    assert crops > 30


@pytest.mark.parametrize("min_size", [4.0, 7.0])
def test_small_objects_are_dropped(picture, min_size):
    cfg = _cfg()
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_BOX_SIZE = 100, min_size
    scale = np.array([WIDTH / 100, HEIGHT / 100])
    sides = list(itertools.product([min_size - 0.1, min_size + 0.1, 30], repeat=2))
    annotations = [
        _annotation([20.0, 30.0, *([20, 30] + side * scale).tolist()], i, iscrowd=crowd)
        for i, side in enumerate(sides)
        for crowd in (0, 1)
    ]
    kept = [i for i, side in enumerate(sides) if min(side) > min_size for _ in range(2)]
    instances = _map(YOLACTDatasetMapper(cfg), picture, annotations)["instances"]
    assert instances.gt_classes.tolist() == kept
    assert len(kept) == 8 and len(instances.gt_masks) == 8


def test_what_a_patch_leaves_is_what_must_be_large_enough(picture):
    patch = PatchTransform(50, 30, 100, 80, WIDTH, HEIGHT)
    mapper = YOLACTDatasetMapper(augmentations=[patch], image_format="RGB", min_box_size=4)
    boxes = [[46.5, 40.0, 53.9, 60.0], [46.5, 40.0, 54.1, 60.0]]
    annotations = [_annotation(box, i) for i, box in enumerate(boxes)]
    assert _map(mapper, picture, annotations)["instances"].gt_classes.tolist() == [1]


def _assert_empty(instances):
    assert len(instances) == 0 and instances.image_size == (SIDE, SIDE)
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.shape == (0, SIDE, SIDE)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_iscrowd.shape == (0,) and instances.gt_iscrowd.dtype == torch.bool


@pytest.mark.parametrize(
    "annotations", [[], [_annotation([10.0, 10.0, 12.0, 40.0])]], ids=["no objects", "too small"]
)
def test_without_objects_instances_are_empty(picture, annotations):
    mapper = _moving_mapper()
    for seed in range(10):
        result = _map(mapper, picture, annotations, seed)
        assert result["image"].shape == (3, SIDE, SIDE)
        _assert_empty(result["instances"])


def test_without_annotations_instances_are_empty(picture):
    _assert_empty(YOLACTDatasetMapper(_cfg())({"file_name": picture})["instances"])


def test_missing_segmentation_names_the_file(picture):
    annotations = _annotations()
    del annotations[2]["segmentation"]
    with pytest.raises(ValueError, match="segmentation") as error:
        _map(YOLACTDatasetMapper(_cfg()), picture, annotations)
    assert picture in str(error.value)


def test_wrong_size_names_the_file(picture):
    record = {**_record(picture, _annotations()), "width": WIDTH + 1}
    with pytest.raises(SizeMismatchError) as error:
        YOLACTDatasetMapper(_cfg())(record)
    assert picture in str(error.value)


def test_other_keys_stay_and_missing_sizes_are_filled_in(picture):
    mapper = YOLACTDatasetMapper(_cfg())
    result = mapper(_record(picture, _annotations()))
    assert set(result) == {"file_name", "height", "width", "image_id", "image", "instances"}
    assert (result["file_name"], result["image_id"]) == (picture, 7)
    result = mapper({"file_name": picture})
    assert (result["height"], result["width"]) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("seed", range(8))
def test_input_is_not_modified(picture, seed):
    annotations = _annotations()
    annotations[0]["segmentation"] = [np.array(p) for p in annotations[0]["segmentation"]]
    annotations[1]["bbox"] = np.array(annotations[1]["bbox"])
    record = _record(picture, annotations)
    before = copy.deepcopy(record)
    np.random.seed(seed)
    _moving_mapper()(record)
    np.testing.assert_equal(record, before)


def _assert_same(a, b):
    assert torch.equal(a["image"], b["image"])
    a, b = a["instances"].get_fields(), b["instances"].get_fields()
    assert set(a) == set(b) == {"gt_boxes", "gt_classes", "gt_masks", "gt_iscrowd"}
    for name in ("gt_boxes", "gt_masks"):
        assert torch.equal(a[name].tensor, b[name].tensor)
    for name in ("gt_classes", "gt_iscrowd"):
        assert torch.equal(a[name], b[name])


def test_numpy_seed_decides(picture):
    cfg = _cfg(PHOTOMETRIC=True, EXPAND=True, CROP=True, flip="horizontal")
    mapper, again = YOLACTDatasetMapper(cfg), YOLACTDatasetMapper(cfg)
    results = [_map(mapper, picture, _annotations(), seed) for seed in range(5)]
    for seed in reversed(range(5)):
        _assert_same(_map(again, picture, _annotations(), seed), results[seed])
    for a, b in itertools.combinations(results, 2):
        assert not torch.equal(a["image"], b["image"])


def test_mapper_can_be_sent_to_another_process(picture):
    mapper = _moving_mapper()
    received = pickle.loads(pickle.dumps(mapper))
    for seed in range(3):
        sent, got = (_map(m, picture, _annotations(), seed) for m in (mapper, received))
        _assert_same(sent, got)


@pytest.fixture
def dataset(tmp_path):
    """The name of a registered dataset of three pictures, each of one colour and object."""
    images, annotations = [], []
    for i in range(1, 4):
        _write(tmp_path / f"{i}.png", np.full((50 + i, 60, 3), 40 * i, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": 50 + i, "width": 60})
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": 800.0,
                "bbox": [15.0, 15.0, 40.0, 20.0],
                "segmentation": [_box_polygon(15.0, 15.0, 55.0, 35.0)],
            }
        )
    coco = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    name = "test_dataset_mapper_train"
    register_coco_instances(name, {}, str(tmp_path / "coco.json"), str(tmp_path))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_train_loader(dataset, num_workers):
    cfg = _cfg()
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.SOLVER.IMS_PER_BATCH = 2
    loader = build_detection_train_loader(cfg, mapper=YOLACTDatasetMapper(cfg))
    seen = set()
    for batch in itertools.islice(loader, 6):
        assert len(batch) == 2
        for item in batch:
            i = item["image_id"]
            seen.add(i)
            assert (item["height"], item["width"]) == (50 + i, 60)
            torch.testing.assert_close(item["image"], torch.full((3, SIDE, SIDE), 40.0 * i))
            box = np.array([15 / 60, 15 / (50 + i), 55 / 60, 35 / (50 + i)]) * SIDE
            np.testing.assert_allclose(item["instances"].gt_boxes.tensor, [box], rtol=1e-5)
            assert item["instances"].gt_classes.tolist() == [0]
    assert seen == {1, 2, 3}


def test_train_loader_augments(dataset):
    cfg = _cfg(PHOTOMETRIC=True, EXPAND=True, CROP=True, flip="horizontal")
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 3
    np.random.seed(0)
    loader = build_detection_train_loader(cfg, mapper=YOLACTDatasetMapper(cfg))
    items = [item for batch in itertools.islice(loader, 8) for item in batch]
    assert {item["image"].shape for item in items} == {(3, SIDE, SIDE)}
    assert len({tuple(item["instances"].gt_boxes.tensor.ravel().tolist()) for item in items}) > 8


@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS])
def test_integer_annotations_are_not_truncated(tmp_path, mode):
    file_name = str(tmp_path / "a.png")
    Image.fromarray(np.zeros((150, 200, 3), np.uint8)).save(file_name)
    box = [11, 13, 61, 77] if mode == BoxMode.XYXY_ABS else [11, 13, 50, 64]
    polygon = [31, 17, 90, 40, 60, 111]
    mapper = YOLACTDatasetMapper(_cfg())
    got, expected = (
        mapper(
            {
                "file_name": file_name,
                "annotations": [
                    {
                        "bbox": [number(v) for v in box],
                        "bbox_mode": mode,
                        "category_id": 0,
                        "segmentation": [[number(v) for v in polygon]],
                    }
                ],
            }
        )["instances"]
        for number in (int, float)
    )
    scale = SIDE / np.array([200, 150, 200, 150])
    np.testing.assert_allclose(got.gt_boxes.tensor, [[11, 13, 61, 77] * scale], rtol=1e-5)
    assert torch.equal(got.gt_masks.tensor, expected.gt_masks.tensor)


def test_keypoints_are_left_out(picture):
    annotations = _annotations()
    for annotation in annotations:
        annotation["keypoints"] = [20.0, 20.0, 2] * 17
    mapper = YOLACTDatasetMapper(_cfg(flip="horizontal"))
    for seed in range(6):
        assert not _map(mapper, picture, annotations, seed)["instances"].has("gt_keypoints")
