"""The generated shapes data set: reproducible, consistent COCO files, and its registration."""

import itertools
import os

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from yolact_d2.data import shapes

NUM_IMAGES = {"train": 12, "val": 4}


def _generate(root, seed=0):
    shapes.generate_shapes(root, NUM_IMAGES["train"], NUM_IMAGES["val"], seed=seed)
    return root


def _contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return _generate(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module", params=shapes.SPLITS)
def split(request):
    return request.param


@pytest.fixture(scope="module")
def coco(root, split):
    return COCO(str(root / "annotations" / f"instances_{split}.json"))


def _masks_by_image(coco):
    """One (N, H, W) bool array per image."""
    for image_id in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        yield np.stack([coco.annToMask(a) for a in annotations]).astype(bool)


def test_layout_is_complete_and_leaves_no_temporary_files(root):
    pictures = {f"{s}/{i:06d}.png" for s, n in NUM_IMAGES.items() for i in range(n)}
    annotations = {f"annotations/instances_{s}.json" for s in NUM_IMAGES}
    assert set(_contents(root)) == pictures | annotations
    assert sorted(os.listdir(root)) == ["annotations", "train", "val"]


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(root, tmp_path):
    first = _contents(root)
    assert _contents(_generate(tmp_path / "again")) == first
    other = _contents(_generate(tmp_path / "other", seed=1))
    assert set(other) == set(first)
    assert all(other[name] != first[name] for name in first)


def test_splits_and_images_differ(root):
    pictures = [data for name, data in _contents(root).items() if name.endswith(".png")]
    assert len(set(pictures)) == sum(NUM_IMAGES.values())


def test_generating_over_an_equal_set_changes_nothing(tmp_path):
    before = _contents(_generate(tmp_path))
    assert _contents(_generate(tmp_path)) == before
    assert sorted(os.listdir(tmp_path)) == ["annotations", "train", "val"]


def test_generating_over_a_different_set_is_refused(tmp_path):
    before = _contents(_generate(tmp_path))
    with pytest.raises(FileExistsError):
        _generate(tmp_path, seed=1)
    assert _contents(tmp_path) == before


def test_recorded_sizes_are_those_of_the_pictures(root, split, coco):
    images = coco.loadImgs(coco.getImgIds())
    assert len(images) == NUM_IMAGES[split]
    low, high = shapes.IMAGE_SIDE
    for image in images:
        picture = cv2.imread(str(root / split / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3)
        assert low <= min(picture.shape[:2]) and max(picture.shape[:2]) <= high
    assert any(image["height"] != image["width"] for image in images)


def test_ids_and_categories(coco):
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    names = [c["name"] for c in coco.loadCats(coco.getCatIds())]
    assert names == ["circle", "rectangle", "triangle", "star"]
    assert coco.getCatIds() == [1, 2, 3, 4]
    assert {a["category_id"] for a in coco.anns.values()} == {1, 2, 3, 4}
    assert all(a["iscrowd"] == 0 for a in coco.anns.values())


def test_objects_per_image(coco):
    low, high = shapes.OBJECTS_PER_IMAGE
    counts = [len(coco.getAnnIds(imgIds=i)) for i in coco.getImgIds()]
    assert low <= min(counts) and max(counts) <= high
    assert len(set(counts)) > 1


def _tight_box(mask):
    """Left, top, right, bottom of a bool mask (H, W)."""
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
        # The last pixel or two of a star's tip cover no pixel's centre, and the area of a small
        # mask is a matter of rounding; so compare with polygons rasterised more finely as well.
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


def test_every_object_is_large_enough_to_see(coco):
    for annotation in coco.anns.values():
        assert annotation["area"] >= shapes.MIN_VISIBLE_AREA
        assert min(annotation["bbox"][2:]) >= shapes.MIN_BOX_SIDE
        for polygon in annotation["segmentation"]:
            outline = np.float32(polygon).reshape(-1, 2)
            assert cv2.contourArea(outline) >= shapes.MIN_PART_AREA


def test_masks_are_visible_parts(coco):
    """Masks share no more than the pixels that their common border runs through."""
    shared_borders = 0
    for masks in _masks_by_image(coco):
        for one, other in itertools.combinations(masks, 2):
            grown = cv2.dilate(one.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
            border = np.count_nonzero(grown & other & ~one)
            assert np.count_nonzero(one & other) <= 2 + 0.5 * border
            shared_borders += border > 5
    assert shared_borders > 0  # so some objects do lie over others


def test_masks_have_no_holes(coco):
    for mask in itertools.chain.from_iterable(_masks_by_image(coco)):
        background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
        # Diagonal neighbours count as linked: a gap thinner than a pixel may look like that.
        assert cv2.connectedComponents(background, connectivity=8)[0] == 1 + 1  # mask, background


def test_pictures_show_the_annotated_objects(root, split, coco):
    """Just inside an object's outline the picture differs from just outside it."""
    kernel = np.ones((3, 3), np.uint8)
    contrasts = []
    for image, masks in zip(coco.loadImgs(coco.getImgIds()), _masks_by_image(coco)):
        picture = cv2.imread(str(root / split / image["file_name"])).astype(float)
        for mask in masks.astype(np.uint8):
            inside = cv2.erode(mask, kernel, iterations=1) > cv2.erode(mask, kernel, iterations=3)
            outside = cv2.dilate(mask, kernel, iterations=3) > cv2.dilate(mask, kernel)
            gap = picture[inside].mean(axis=0) - picture[outside].mean(axis=0)
            contrasts.append(np.linalg.norm(gap))
    assert min(contrasts) > 15 and np.median(contrasts) > 60


def test_loading_a_registered_split_generates_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "DEFAULT_NUM_TRAIN", 3)
    monkeypatch.setattr(shapes, "DEFAULT_NUM_VAL", 2)
    root, names = tmp_path / "made" / "on" / "demand", ["shapes_test_train", "shapes_test_val"]
    shapes.register_shapes(str(root), prefix="shapes_test")
    try:
        assert not root.exists()
        train, val = (DatasetCatalog.get(name) for name in names)
        assert (len(train), len(val)) == (3, 2)
        for record in train + val:
            assert os.path.isfile(record["file_name"])
            assert record["annotations"]
            assert all(0 <= a["category_id"] < 4 for a in record["annotations"])
        metadata = MetadataCatalog.get("shapes_test_val")
        assert metadata.thing_classes == list(shapes.SHAPE_CLASSES)
        assert metadata.evaluator_type == "coco"
        assert metadata.image_root == str(root / "val")
        assert os.path.isfile(metadata.json_file)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
