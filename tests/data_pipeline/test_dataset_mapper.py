"""The training mapper: image, boxes and masks stay aligned; what is dropped."""

import copy
import itertools

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from plain import base_cfg
from pycocotools import mask as mask_api

from yolact_d2 import load_config
from yolact_d2.data import YOLACTDatasetMapper
from yolact_d2.data.augmentation import PatchTransform

SIDE = 192
HEIGHT, WIDTH = 150, 200
SCALE = np.array([SIDE / WIDTH, SIDE / HEIGHT])
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
ALL = ["INPUT.AUG.PHOTOMETRIC", True, "INPUT.AUG.EXPAND", True, "INPUT.AUG.CROP", True]


def _mapper(*opts, flip="none"):
    """Without augmentation unless switched on."""
    cfg = base_cfg()
    switched_off = [False if option is True else option for option in ALL]
    cfg.merge_from_list(["INPUT.IMAGE_SIZE", SIDE, "INPUT.RANDOM_FLIP", flip, *switched_off, *opts])
    return YOLACTDatasetMapper(cfg)


def _moving_mapper(flip="horizontal", jitter=()):
    """With everything that moves pixels, and nothing that changes colours."""
    opts = ["INPUT.AUG.EXPAND", True, "INPUT.AUG.CROP", True, "INPUT.AUG.SCALE_JITTER", [*jitter]]
    return _mapper(*opts, flip=flip)


def _inside(polygon, height=HEIGHT, width=WIDTH):
    """The pixels (bool, H x W) whose centre is inside a convex polygon."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    points = np.array(polygon)
    sides = [
        (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0))
    ]
    return np.all(np.array(sides) >= 0, axis=0) | np.all(np.array(sides) <= 0, axis=0)


def _tight_box(polygon):
    return [*np.min(polygon, axis=0).tolist(), *np.max(polygon, axis=0).tolist()]


def _annotation(box, category=0, **kwargs):
    """An object that fills its box, XYXY."""
    x0, y0, x1, y1 = box
    return {
        "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], **kwargs,
    }  # fmt: skip


def _annotations(rle=False):
    """Annotations of POLYGONS. The crowd region is always RLE, as in COCO."""
    annotations = []
    for i, polygon in enumerate(POLYGONS):
        annotation = _annotation(_tight_box(polygon), i, iscrowd=int(i == CROWD))
        annotation["segmentation"] = [np.ravel(polygon).tolist()]
        if rle or i == CROWD:
            mask = np.asfortranarray(_inside(polygon), dtype=np.uint8)
            annotation["segmentation"] = mask_api.encode(mask)
        annotations.append(annotation)
    return annotations


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A file that shows POLYGONS in COLOURS."""
    image = np.full((HEIGHT, WIDTH, 3), BACKGROUND, np.uint8)
    for polygon, colour in zip(POLYGONS, COLOURS):
        image[_inside(polygon)] = colour
    return _write(tmp_path_factory.mktemp("images") / "objects.png", image)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """A file of the same size in which red is the column, green the row, and blue 255."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    image[..., 0], image[..., 1] = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
    return _write(tmp_path_factory.mktemp("images") / "ramps.png", image)


def _write(path, image):
    cv2.imwrite(str(path), image[..., ::-1])
    return str(path)


def _record(file_name, annotations):
    return {
        "file_name": file_name, "height": HEIGHT, "width": WIDTH, "image_id": 7,
        "annotations": annotations,
    }  # fmt: skip


def _map(mapper, file_name, annotations, seed=0):
    np.random.seed(seed)
    return mapper(_record(file_name, annotations))


def _movement_of_points(image):
    """The factors (2,) and shifts (2,) that moved x and y, from augmented ramps."""
    image = image.numpy()
    # The fill is less blue. Close to its border and that of the image values are not linear.
    pure = image[2] > 254.9
    rows, columns = np.flatnonzero(pure.any(axis=1))[4:-4], np.flatnonzero(pure.any(axis=0))[4:-4]
    x = np.polyfit(image[0, rows[0], columns] + 0.5, columns + 0.5, 1)
    y = np.polyfit(image[1, rows, columns[0]] + 0.5, rows + 0.5, 1)
    return np.stack([x, y], axis=1)


JITTER = 0.3, 2.0


@pytest.mark.parametrize(
    "flip, jitter", [("none", ()), ("horizontal", ()), ("vertical", ()), ("horizontal", JITTER)]
)
def test_boxes_follow_the_image_and_objects_outside_are_dropped(ramps, flip, jitter):
    mapper, annotations = _moving_mapper(flip, jitter), _annotations()
    boxes = np.array([a["bbox"] for a in annotations])
    mirrored, dropped, cut = np.zeros(2, bool), 0, 0
    for seed in range(60):
        result = _map(mapper, ramps, annotations, seed)
        factors, shifts = _movement_of_points(result["image"])
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


@pytest.mark.parametrize(
    "rle, flip, jitter",
    [
        (False, "horizontal", ()),
        (True, "vertical", ()),
        (False, "vertical", JITTER),
        (True, "none", JITTER),
    ],
)
def test_masks_cover_the_pixels_of_their_object(objects, rle, flip, jitter):
    mapper, annotations = _moving_mapper(flip, jitter), _annotations(rle)
    palette = np.array([BACKGROUND, *COLOURS], np.float32)
    compared, displacements = 0, []
    for seed in range(60):
        result = _map(mapper, objects, annotations, seed)
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


@pytest.mark.parametrize("flip, jitter", [("horizontal", ()), ("vertical", JITTER)])
def test_examples_are_those_of_plain_steps(objects, flip, jitter):
    """One transform after the other, and Detectron2's own resize and masks."""
    mapper, rng, cut = _moving_mapper(flip, jitter), np.random.default_rng(0), 0
    for seed in range(40):
        annotations = _annotations(rle=seed % 4 == 0)
        for _ in range(6):  # of two polygons that cross themselves, inside the image
            polygons = rng.uniform(0, 1, (2, 7, 2)) ** rng.uniform(0.5, 2, 2) * (WIDTH, HEIGHT)
            box = _tight_box(polygons.reshape(-1, 2))
            mask = {"segmentation": list(polygons.reshape(2, -1).round(1))}
            annotations.append(_annotation(box, 5, iscrowd=0) | mask)
        result = _map(mapper, objects, annotations, seed)

        np.random.seed(seed)
        image = cv2.imread(objects)[..., ::-1]
        aug_input = T.AugInput(image, boxes=np.array([a["bbox"] for a in annotations]))
        aug_input.is_crowd = np.array([a["iscrowd"] == 1 for a in annotations])
        transforms = mapper.augmentations(aug_input).transforms
        plain = T.TransformList(
            T.ResizeTransform(t.h, t.w, t.new_h, t.new_w) if hasattr(t, "new_h") else t
            for t in transforms
        )
        expected = plain.apply_image(image).transpose(2, 0, 1)
        np.testing.assert_allclose(result["image"], expected, atol=0.05)
        boxes = plain.apply_box(np.array([a["bbox"] for a in annotations]))
        centres, clipped = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes.clip(0, SIDE)
        kept = ((centres > 0) & (centres < SIDE)).all(axis=1)
        kept &= (clipped[:, 2:] - clipped[:, :2] > 4).all(axis=1)
        moved = [
            utils.transform_instance_annotations(copy.deepcopy(a), plain, (SIDE, SIDE))
            for a, keep in zip(annotations, kept)
            if keep
        ]
        assert len(result["instances"]) == len(moved)
        if moved:
            expected = utils.annotations_to_instances(moved, (SIDE, SIDE), "bitmask")
            got = result["instances"]
            assert torch.equal(got.gt_boxes.tensor, expected.gt_boxes.tensor)
            assert torch.equal(got.gt_classes, expected.gt_classes)
            assert torch.equal(got.gt_masks.tensor, expected.gt_masks.tensor)
            cut += (boxes != clipped)[kept].any(axis=1).sum()
    assert cut > 50


def test_values_without_augmentation(objects):
    result = _map(_mapper(), objects, _annotations())
    assert set(result) == {"file_name", "height", "width", "image_id", "image", "instances"}
    assert (result["file_name"], result["image_id"]) == (objects, 7)
    assert result["image"].is_contiguous()
    instances = result["instances"]
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes", "gt_masks", "gt_iscrowd"}
    assert instances.gt_classes.tolist() == [0, 1, 2, 3, 4]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_iscrowd.tolist() == [False] * 4 + [True]
    assert instances.gt_iscrowd.dtype == torch.bool
    expected = np.array([_tight_box(polygon) for polygon in POLYGONS]) * np.tile(SCALE, 2)
    np.testing.assert_allclose(instances.gt_boxes.tensor, expected, rtol=1e-5)
    assert isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_masks.tensor.dtype == torch.bool
    for polygon, mask in zip(POLYGONS, instances.gt_masks.tensor.numpy()):
        assert _iou(mask, _inside(np.array(polygon) * SCALE, SIDE, SIDE)) > 0.95


@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS])
def test_integer_annotations_are_not_truncated(objects, mode):
    box = [11, 13, 61, 77] if mode == BoxMode.XYXY_ABS else [11, 13, 50, 64]
    polygon, masks = [31, 17, 90, 40, 60, 111], []
    for number in (int, float):
        annotation = {
            "bbox": [*map(number, box)], "bbox_mode": mode, "category_id": 0,
            "segmentation": [[*map(number, polygon)]], "keypoints": [20.0, 20.0, 2] * 17,
        }  # fmt: skip
        instances = _mapper()({"file_name": objects, "annotations": [annotation]})["instances"]
        expected = [11, 13, 61, 77] * np.tile(SCALE, 2)
        np.testing.assert_allclose(instances.gt_boxes.tensor, [expected], rtol=1e-5)
        masks.append(instances.gt_masks.tensor)
        assert not instances.has("gt_keypoints")
    assert torch.equal(*masks)


def test_objects_with_their_centre_outside_a_patch_are_dropped(objects):
    patch = PatchTransform(50, 30, 100, 80, WIDTH, HEIGHT)  # x in 50..150, y in 30..110
    mapper = YOLACTDatasetMapper(
        True,
        augmentations=[patch, T.ResizeTransform(80, 100, 160, 200)],
        image_format="RGB",
        min_box_size=4,
    )
    kept = {
        (30.0, 40.0, 72.0, 60.0): (0, 20, 44, 60),  # cut at the left
        (60.0, 40.0, 80.0, 70.0): (20, 20, 60, 80),  # whole
        (140.0, 100.0, 158.0, 118.0): (180, 140, 200, 160),  # cut at the lower right
        (80.0, 10.0, 90.0, 52.0): (60, 0, 80, 44),  # cut at the top
        (48.0, 40.0, 52.5, 60.0): (0, 20, 5, 60),  # its visible part is large enough
    }
    dropped = [
        (30.0, 40.0, 70.0, 60.0),  # centre on the left border
        (140.0, 40.0, 160.0, 60.0),  # on the right one
        (80.0, 20.0, 90.0, 40.0),  # on the upper one
        (80.0, 100.0, 90.0, 120.0),  # on the lower one
        (140.0, 60.0, 162.0, 90.0),  # to the right, much of the object visible
        (80.0, 100.0, 90.0, 122.0),  # below
        (0.0, 0.0, 20.0, 20.0),  # nothing visible
        (48.2, 40.0, 51.9, 60.0),  # too small a part visible
    ]
    boxes = [*kept, *dropped]
    annotations = [
        _annotation(box, i, iscrowd=crowd) for crowd in (0, 1) for i, box in enumerate(boxes)
    ]
    instances = _map(mapper, objects, annotations)["instances"]
    assert instances.gt_classes.tolist() == [0, 1, 2, 3, 4] * 2
    assert instances.gt_iscrowd.tolist() == [False] * 5 + [True] * 5
    np.testing.assert_allclose(instances.gt_boxes.tensor, [*kept.values()] * 2, atol=1e-4)
    for (x0, y0, x1, y1), mask in zip(kept.values(), instances.gt_masks.tensor.numpy()):
        expected = np.zeros((160, 200), bool)
        expected[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(mask, expected)


def test_crop_does_not_count_crowds(objects):
    crowd = _annotation([60.0, 40.0, 140.0, 110.0], iscrowd=1)
    mapper, uncropped = _mapper("INPUT.AUG.CROP", True), crowd["bbox"] * np.tile(SCALE, 2)
    for seed in range(20):
        instances = _map(mapper, objects, [crowd], seed)["instances"]
        np.testing.assert_allclose(instances.gt_boxes.tensor, [uncropped], rtol=1e-5)


def test_images_without_objects_have_empty_instances(objects):
    records = [{"file_name": objects}, _record(objects, [])]
    records.append(_record(objects, [_annotation([10.0, 10.0, 12.0, 40.0])]))  # too small
    np.random.seed(0)
    for record, _ in itertools.product(records, range(5)):
        result = _moving_mapper()(record)
        assert (result["height"], result["width"]) == (HEIGHT, WIDTH)
        assert result["image"].shape == (3, SIDE, SIDE)
        instances = result["instances"]
        assert len(instances) == 0 and instances.image_size == (SIDE, SIDE)
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64
        assert isinstance(instances.gt_masks, BitMasks)
        assert instances.gt_masks.tensor.shape == (0, SIDE, SIDE)
        assert instances.gt_masks.tensor.dtype == torch.bool
        assert instances.gt_iscrowd.shape == (0,) and instances.gt_iscrowd.dtype == torch.bool


def test_input_is_not_modified(objects):
    annotations = _annotations()
    annotations[0]["segmentation"] = [np.array(p) for p in annotations[0]["segmentation"]]
    annotations[1]["bbox"] = np.array(annotations[1]["bbox"])
    record = _record(objects, annotations)
    before = copy.deepcopy(record)
    np.random.seed(0)
    for _ in range(8):
        _moving_mapper()(record)
        np.testing.assert_equal(record, before)


def _embedmask_cfg(*opts):
    return load_config("embedmask_R_50_FPN_1x", ["INPUT.MIN_SIZE_TRAIN", (SIDE,), *opts])


def test_embedmask_examples_are_those_of_detectron2(objects):
    cfg = _embedmask_cfg()
    flipped = set()
    for seed in range(6):
        annotations = [a for a in _annotations() if not a["iscrowd"]]
        got, expected = (
            _map(mapper, objects, copy.deepcopy(annotations), seed)
            for mapper in (YOLACTDatasetMapper(cfg), DatasetMapper(cfg, is_train=True))
        )
        assert torch.equal(got["image"], expected["image"]) and got["image"].dtype == torch.uint8
        got, expected = got["instances"], expected["instances"]
        torch.testing.assert_close(got.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert torch.equal(got.gt_classes, expected.gt_classes)
        assert torch.equal(got.gt_masks.tensor, expected.gt_masks.tensor)
        flipped.add(got.gt_boxes.tensor[0, 0].item() > SIDE / 2)
    assert flipped == {True, False}


def test_crops_of_embedmask_keep_the_visible_parts(objects):
    opts = "INPUT.CROP.ENABLED True INPUT.CROP.TYPE relative INPUT.CROP.SIZE [0.5,0.7]".split()
    mapper, cut = YOLACTDatasetMapper(_embedmask_cfg(*opts)), 0
    palette = np.array([BACKGROUND, *COLOURS], np.float32)
    for seed in range(20):
        result = _map(mapper, objects, _annotations(), seed)
        assert result["image"].shape == (3, SIDE, round(SIDE * WIDTH * 0.7 / (HEIGHT * 0.5)))
        image, instances = result["image"].flip(0).numpy(), result["instances"]  # RGB
        colours = np.linalg.norm(image[None] - palette[:, :, None, None], axis=1).argmin(0) - 1
        for category, mask, box in zip(
            instances.gt_classes.tolist(),
            instances.gt_masks.tensor.numpy(),
            instances.gt_boxes.tensor.numpy(),
        ):
            assert _iou(mask, colours == category) > 0.9
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            cut += rows[-1] == SIDE - 1
    assert cut > 5
