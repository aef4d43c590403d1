"""The generated shapes dataset: reproducible, consistent COCO files, and its registration."""

import itertools
import os
from functools import partial

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from yolact_d2.data import shapes

NUM_IMAGES = {"train": 12, "val": 4}
KERNEL = np.ones((3, 3), np.uint8)


def _contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    shapes.generate_shapes(root, *NUM_IMAGES.values())
    return root


@pytest.fixture(scope="module", params=NUM_IMAGES)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def coco(root, split):
    return COCO(str(root / "annotations" / f"instances_{split}.json"))


@pytest.fixture(scope="module")
def masks_by_image(coco):
    """One (N, H, W) bool array per image."""
    annotations = [coco.loadAnns(coco.getAnnIds(imgIds=i)) for i in coco.getImgIds()]
    return [np.stack([coco.annToMask(a) for a in of_image]) > 0 for of_image in annotations]


def test_files(root):
    images = {f"{s}/{i:06d}.png" for s, n in NUM_IMAGES.items() for i in range(n)}
    contents = _contents(root)
    assert set(contents) == images | {f"annotations/instances_{s}.json" for s in NUM_IMAGES}
    assert len({contents[name] for name in images}) == len(images)


def test_seed_decides(root, tmp_path):
    shapes.generate_shapes(tmp_path / "same", 2, 1)
    same, other = _contents(tmp_path / "same"), tmp_path / "other"
    expected = _contents(root)
    assert all(data == expected[name] for name, data in same.items() if name.endswith("png"))
    shapes.generate_shapes(other, 2, 1, seed=1)
    assert all(data != same[name] for name, data in _contents(other).items())
    # Generating again changes nothing; other images are not replaced.
    shapes.generate_shapes(tmp_path / "same", 2, 1)
    with pytest.raises(FileExistsError):
        shapes.generate_shapes(tmp_path / "same", 2, 1, seed=1)
    assert _contents(tmp_path / "same") == same


def test_images_and_sizes(root, split, coco):
    images = coco.loadImgs(coco.getImgIds())
    assert len(images) == NUM_IMAGES[split]
    for image in images:
        shape = cv2.imread(str(root / split / image["file_name"])).shape
        assert shape == (image["height"], image["width"], 3)
        assert 128 <= min(shape[:2]) and max(shape[:2]) <= 192
    assert any(image["height"] != image["width"] for image in images)


def test_ids_categories_and_objects(coco):
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    names = [c["name"] for c in coco.loadCats(coco.getCatIds())]
    assert names == ["circle", "rectangle", "triangle", "star"]
    assert coco.getCatIds() == [1, 2, 3, 4]
    assert {a["category_id"] for a in coco.anns.values()} == {1, 2, 3, 4}
    assert all(a["iscrowd"] == 0 for a in coco.anns.values())
    counts = [len(coco.getAnnIds(imgIds=i)) for i in coco.getImgIds()]
    assert 2 <= min(counts) < max(counts) <= 5
    for annotation in coco.anns.values():
        assert annotation["area"] >= shapes.EASY.min_visible_area
        assert min(annotation["bbox"][2:]) >= shapes.EASY.min_box_side
        for polygon in annotation["segmentation"]:
            outline = np.float32(polygon).reshape(-1, 2)
            assert cv2.contourArea(outline) >= shapes.MIN_PART_AREA


def _tight_box(mask):
    """Left, top, right, bottom of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_polygons_agree_with_area_and_box(coco):
    coarse = []
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        deviation = abs(float(mask.sum()) - annotation["area"])
        coarse.append(deviation <= max(3, 0.05 * annotation["area"]))
        x, y, width, height = annotation["bbox"]
        box = np.array([x, y, x + width, y + height])
        # The tip of a star may cover no pixel's centre, and the area of a small mask is rounded,
        # so polygons are also rasterised on a finer grid.
        image = coco.imgs[annotation["image_id"]]
        fine = [(4 * np.array(polygon)).tolist() for polygon in annotation["segmentation"]]
        rle = mask_api.merge(mask_api.frPyObjects(fine, 4 * image["height"], 4 * image["width"]))
        assert mask_api.area(rle) / 16 == pytest.approx(annotation["area"], rel=0.08)
        assert np.abs(_tight_box(mask_api.decode(rle)) / 4 - box).max() <= 1
        inset = (_tight_box(mask) - box) * [1, 1, -1, -1]
        assert -1 <= inset.min() and inset.max() <= 3
        points = np.concatenate(annotation["segmentation"]).reshape(-1, 2)
        assert [*points.min(axis=0), *np.ptp(points, axis=0)] == annotation["bbox"]
    assert np.mean(coarse) > 0.95


def test_masks_are_visible_parts_without_holes(masks_by_image):
    shared_borders = 0
    for masks in masks_by_image:
        for one, other in itertools.combinations(masks, 2):
            grown = cv2.dilate(one.astype(np.uint8), KERNEL).astype(bool)
            border = np.count_nonzero(grown & other & ~one)
            # Masks share only pixels on their common border.
            assert np.count_nonzero(one & other) <= 2 + 0.5 * border
            shared_borders += border > 5
        for mask in masks:
            background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
            # Diagonal neighbours count as linked, because a gap may be thinner than a pixel.
            assert cv2.connectedComponents(background, connectivity=8)[0] == 2
    assert shared_borders > 0  # some objects lie on top of others


def test_the_hard_setting(tmp_path):
    """More and smaller objects of 8 classes, more of which are covered."""
    shapes.generate_shapes(tmp_path, 30, 1, num_test=2, setting=shapes.HARD)
    sizes, counts, covered = [], [], []
    classes = set()
    for split, num in (("train", 30), ("val", 1), ("test", 2)):
        coco = COCO(str(tmp_path / "annotations" / f"instances_{split}.json"))
        assert len(coco.imgs) == len(list((tmp_path / split).iterdir())) == num
        assert [c["name"] for c in coco.dataset["categories"]] == [*shapes.HARD.classes]
        for image in coco.imgs.values():
            annotations = coco.imgToAnns[image["id"]]
            counts.append(len(annotations))
            sizes += [a["area"] ** 0.5 / min(image["height"], image["width"]) for a in annotations]
            classes |= {a["category_id"] for a in annotations}
            boxes = np.array([a["bbox"] for a in annotations])
            first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
            touching = (first[:, None] < last) & (last[:, None] > first)
            covered.append((touching.all(axis=2).sum() - len(boxes)) / len(boxes))
    assert classes == set(range(1, 9))
    assert 4 <= np.mean(counts) and max(counts) <= 12
    assert min(sizes) < 0.08 and np.median(sizes) < 0.2 and max(sizes) <= 0.4
    assert np.mean(covered) > 0.5


@pytest.mark.parametrize("name", shapes.UPRIGHT_OUTLINES)
def test_outlines_are_simple_and_upright(name):
    """Each has its area, 1, once, and is symmetric, but for its tilt."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        outline = shapes._random_outline(rng, name)
        fine = np.round((outline + 2) * 400).astype(np.int32)
        canvas = cv2.fillPoly(np.zeros((1600, 1600), np.uint8), [fine], 1)
        assert canvas.sum() / 400**2 == pytest.approx(1, abs=0.02)
        assert cv2.connectedComponents(canvas)[0] == 2
        assert np.abs(outline.mean(axis=0)).max() < 0.3


def test_loading_generates_the_dataset(tmp_path, monkeypatch):
    generate = partial(shapes.generate_shapes, num_train=3, num_val=2)
    monkeypatch.setattr(shapes, "generate_shapes", generate)
    root = tmp_path / "made" / "on" / "demand"
    shapes.register_shapes(str(root), prefix="shapes_test")
    assert not root.exists()
    train, val = (DatasetCatalog.get(f"shapes_test_{split}") for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    for record in train + val:
        assert os.path.isfile(record["file_name"])
        assert record["annotations"]
        assert all(0 <= a["category_id"] < 4 for a in record["annotations"])
    assert os.path.isfile(MetadataCatalog.get("shapes_test_val").json_file)
