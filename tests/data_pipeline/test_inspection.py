"""inspect_dataset finds each defect, by kind and id, and nothing in a dataset that has none."""

import copy

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from yolact_d2.data.inspection import KINDS, format_defects, inspect_dataset, read_coco

WIDTH, HEIGHT = 40, 30


def rle(mask, compressed=True):
    """An RLE, as a JSON has it."""
    if not compressed:
        edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0)).tolist()
        runs = np.diff([0, *edges, mask.size]).tolist()
        return {"size": list(mask.shape), "counts": runs}
    encoded = mask_util.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def rectangle(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


BOX = [5, 4, 10, 8]
SOUND = {
    "images": [
        {"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "sub/2.png", "width": WIDTH, "height": HEIGHT},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 7, "bbox": BOX, "segmentation": [polygon(*BOX)]},
        {
            "id": 11, "image_id": 2, "category_id": 3, "bbox": BOX,
            "segmentation": rle(rectangle(*BOX)),
        },
        {
            "id": 12, "image_id": 2, "category_id": 1000, "bbox": BOX, "iscrowd": 1,
            "segmentation": rle(rectangle(*BOX), compressed=False),
        },
    ],
    "categories": [{"id": i, "name": f"class {i}"} for i in (7, 1000, 3)],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("1.png", "sub/2.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def coco():
    return copy.deepcopy(SOUND)


def found(coco, folder):
    """(kind, image id, annotation id) of each defect."""
    defects = inspect_dataset(coco, str(folder)).defects
    assert {d.kind for d in defects} <= set(KINDS) and all(d.detail for d in defects)
    return [(d.kind, d.image_id, d.annotation_id) for d in defects]


def test_sound_dataset(coco, folder):
    assert found(coco, folder) == []


# Changes to annotation 10, and what is wrong then.
@pytest.mark.parametrize(
    "change, kinds",
    [
        (
            {"bbox": [-2.5, 4, 17.5, 8], "segmentation": [polygon(-2.5, 4, 17.5, 8)]},
            "box_outside mask_outside",
        ),
        ({"bbox": [5, 4, 10, 27.5]}, "box_outside mask_box_mismatch"),
        ({"bbox": [-0.9, 4, 15.9, 8], "segmentation": [polygon(0, 4, 15, 8)]}, ""),
        ({"bbox": [5, 4, 0, 8]}, "empty_box"),
        ({"bbox": [5, 4, 10, -8]}, "empty_box"),
        ({"bbox": [5, 4, 10]}, "bad_record"),
        ({"bbox": [5, 4, 10, float("nan")]}, "bad_record"),
        ({"bbox": ["5", "4", "10", "8"]}, "bad_record"),
        ({"bbox": None}, "bad_record"),
        ({"bbox": 7}, "bad_record"),
        ({"bbox": [[5, 4], 10, 8]}, "bad_record"),
        ({"segmentation": None}, "no_mask"),
        ({"segmentation": []}, "no_mask"),
        ({"segmentation": {}}, "no_mask"),
        ({"segmentation": [polygon(*BOX), [5, 4, 15, 4]]}, "degenerate_polygon"),
        ({"segmentation": [polygon(*BOX), [5, 4, 15, 4, 15, 4]]}, "degenerate_polygon"),
        ({"segmentation": [polygon(*BOX), [5, 4, 15, 12, 10, 8, 7, 5.6]]}, "degenerate_polygon"),
        ({"segmentation": [polygon(*BOX), []]}, "degenerate_polygon"),
        ({"segmentation": [[5, 4]]}, "degenerate_polygon"),
        ({"segmentation": [polygon(*BOX)[:-1]]}, "bad_polygon"),
        ({"segmentation": polygon(*BOX)}, " ".join(["bad_polygon"] * 8)),
        ({"segmentation": [[[5, 4], [15, 4], [15, 12]]]}, "bad_polygon"),
        ({"segmentation": [[*polygon(*BOX), 6, float("inf")]]}, "bad_polygon"),
        ({"segmentation": "mask.png"}, "bad_polygon"),
        ({"segmentation": rle(np.ones((WIDTH, HEIGHT), np.uint8))}, "rle_size"),
        ({"segmentation": rle(rectangle(0, 0, 0, 0))}, "no_mask"),
        ({"segmentation": {**rle(rectangle(*BOX)), "counts": "zz~"}}, "bad_rle"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 8]}}, "bad_rle"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1300, -100]}}, "bad_rle"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1199.5, 0.5]}}, "bad_rle"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": {}}}, "bad_rle"),
        ({"segmentation": {"size": [HEIGHT], "counts": [1200]}}, "bad_rle"),
        ({"segmentation": {"counts": [1200]}}, "bad_rle"),
        ({"segmentation": [polygon(7.1, 4, 7.9, 8)]}, "mask_box_mismatch"),
        ({"segmentation": rle(rectangle(5, 4, 10, 11))}, "mask_box_mismatch"),
        ({"segmentation": [polygon(7, 4, 8, 8)]}, ""),  # 2 pixels may be
        ({"segmentation": rle(rectangle(5, 4, 9, 7))}, ""),
        ({"segmentation": [[5, 4, 15, 12, 15, 4, 5, 12]]}, ""),  # crosses itself
        ({"category_id": 5}, "unknown_category"),
        ({"image_id": 5}, "unknown_image"),
        ({"id": 11}, "duplicate_id"),
        ({"id": None}, "bad_record"),
        ({"image_id": None}, "bad_record"),
        ({"image_id": [1]}, "bad_record"),
        ({"category_id": "7"}, "bad_record"),
        ({"category_id": True}, "bad_record"),
        ({"iscrowd": "0"}, "bad_record"),
        ({"iscrowd": 2}, "bad_record"),
        ({"iscrowd": None}, "bad_record"),
        ({"iscrowd": True}, ""),
        ({"ignore": 1}, "bad_record"),
        ({"ignore": 0}, ""),
    ],
)  # fmt: skip
def test_defects_of_an_annotation(coco, folder, change, kinds):
    coco["annotations"].append({**coco["annotations"].pop(0), **change})
    annotation = coco["annotations"][-1]
    where = (annotation["image_id"], annotation["id"])
    assert found(coco, folder) == [(kind, *where) for kind in kinds.split()]


def test_degenerate_polygons_are_told_apart(coco, folder):
    polygons = [polygon(*BOX), [], [5, 4], [5, 4, 15, 4], [5, 4, 15, 4, 10, 4]]
    coco["annotations"][0]["segmentation"] = polygons
    details = [defect.detail for defect in inspect_dataset(coco, str(folder)).defects]
    assert details == [
        "polygon 1 has 0 points",
        "polygon 2 has 1 points",
        "polygon 3 has 2 points",
        "polygon 4 has no area",
    ]


@pytest.mark.parametrize("field", ["id", "image_id", "category_id", "bbox"])
def test_field_that_is_missing(coco, folder, field):
    del coco["annotations"][0][field]
    ((kind, image_id, annotation_id),) = found(coco, folder)
    assert kind == "bad_record"
    assert field == "image_id" or image_id == 1
    assert field == "id" or annotation_id == 10


def test_large_boxes_may_differ_by_more_pixels(coco, folder):
    coco["images"][0].update(width=400, height=300)
    Image.new("RGB", (400, 300)).save(folder / "1.png")
    coco["annotations"][0].update(bbox=[10, 10, 200, 100], segmentation=[polygon(19, 10, 191, 100)])
    assert found(coco, folder) == []
    coco["annotations"][0].update(segmentation=[polygon(21, 10, 189, 100)])
    assert found(coco, folder) == [("mask_box_mismatch", 1, 10)]
    coco["annotations"][0].update(segmentation=[polygon(10, 16, 200, 94)])
    assert found(coco, folder) == [("mask_box_mismatch", 1, 10)]


def test_mask_that_only_sticks_out_where_its_box_is_clipped(coco, folder):
    coco["annotations"][0].update(bbox=[0, 4, 15, 8], segmentation=[polygon(-0.9, 4, 15.9, 8)])
    assert found(coco, folder) == []
    coco["annotations"][0].update(segmentation=[polygon(-9, 4, 24, 8)])
    assert found(coco, folder) == [("mask_outside", 1, 10)]


# Changes to image 1, and what is wrong then.
@pytest.mark.parametrize(
    "change, kind",
    [
        ({"file_name": "3.png"}, "missing_image"),
        ({"file_name": "sub"}, "missing_image"),
        ({"file_name": ""}, "missing_image"),
        ({"file_name": "../outside.png"}, "path_outside"),
        ({"file_name": "sub/../../outside.png"}, "path_outside"),
        ({"file_name": "/etc/hostname"}, "path_outside"),
        ({"file_name": None}, "bad_record"),
        ({"width": WIDTH + 1}, "wrong_size"),
        ({"height": HEIGHT + 1}, "wrong_size"),
        ({"width": 0}, "bad_record"),
        ({"height": -HEIGHT}, "bad_record"),
        ({"height": 30.0}, "bad_record"),
        ({"width": "40"}, "bad_record"),
    ],
)
def test_defects_of_an_image(coco, folder, change, kind):
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder.parent / "outside.png")
    coco["images"][0].update(change)
    assert found(coco, folder) == [(kind, 1, None)]
    assert inspect_dataset(coco, str(folder)).defects[0].file == coco["images"][0]["file_name"]


@pytest.mark.parametrize("keep", [0, 20, -30])
def test_images_that_cannot_be_decoded(coco, folder, keep):
    # Of the last the header is sound: only who reads all of it finds out.
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:keep])
    assert found(coco, folder) == [("unreadable_image", 1, None)]


def test_image_turned_by_exif_is_measured_as_it_is_read(coco, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "1.jpg", exif=exif)
    coco["images"][0]["file_name"] = "1.jpg"
    assert found(coco, folder) == []


def test_duplicate_ids_of_images_and_categories(coco, folder):
    coco["images"].append({**coco["images"][0], "file_name": "sub/2.png"})
    coco["categories"].append({"id": 3, "name": "again"})
    inspection = inspect_dataset(coco, str(folder))
    assert [(d.kind, d.file, d.image_id) for d in inspection.defects] == [
        ("duplicate_id", "sub/2.png", 1),
        ("duplicate_id", None, None),
    ]
    assert "'categories' has the id 3 twice" in inspection.defects[1].detail
    assert [image["id"] for image in inspection.images] == [1, 2]
    assert [c["name"] for c in inspection.categories if c["id"] == 3] == ["class 3"]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("record", [None, "text", []])
def test_records_that_are_no_dicts(coco, folder, key, record):
    coco[key].append(record)
    assert found(coco, folder) == [("bad_record", None, None)]


@pytest.mark.parametrize("field, value", [("id", "7"), ("name", None)])
def test_bad_category_is_the_only_complaint(coco, folder, field, value):
    coco["categories"][0][field] = value
    kinds = [kind for kind, _, _ in found(coco, folder)]
    assert kinds == (["bad_record", "unknown_category"] if field == "id" else ["bad_record"])


def test_empty_lists(folder):
    empty = {"images": [], "annotations": [], "categories": []}
    assert found(empty, folder) == [("empty_list", None, None)] * 3


def test_all_defects_are_found_at_once(coco, folder):
    (folder / "1.png").unlink()
    coco["images"][1]["width"] = 41
    coco["annotations"][0].update(category_id=5, bbox=[5, 4, 0, 8], segmentation=[[1, 2]])
    coco["annotations"][1]["segmentation"] = None
    assert found(coco, folder) == [
        ("missing_image", 1, None),
        ("wrong_size", 2, None),
        ("unknown_category", 1, 10),
        ("empty_box", 1, 10),
        ("degenerate_polygon", 1, 10),
        ("no_mask", 2, 11),
        ("rle_size", 2, 12),
    ]


def test_what_can_be_counted_all_the_same(coco, folder):
    (folder / "1.png").unlink()
    coco["annotations"][0]["segmentation"] = None
    coco["annotations"][1]["bbox"] = None
    inspection = inspect_dataset(coco, str(folder))
    assert [image["id"] for image in inspection.images] == [1, 2]
    assert [annotation["id"] for annotation in inspection.annotations] == [10, 12]


def test_progress_sees_every_image(coco, folder):
    seen = []

    def progress(items, total):
        seen.append(total)
        for item in items:
            seen.append(item)
            yield item
        seen.append("end")

    inspect_dataset(coco, str(folder), progress)
    assert seen == [2, [], [], "end"]


def test_empty_folder(coco, tmp_path):
    assert found(coco, tmp_path) == [("missing_image", 1, None), ("missing_image", 2, None)]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be read as JSON"),
        (b"{'images': []}", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[]", "no list 'images'"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"images": [], "annotations": []}', "no list 'categories'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "coco.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(str(tmp_path / "coco.json"))
    assert str(tmp_path / "coco.json") in str(error.value)


def test_report_names_file_and_ids_and_counts_the_rest(coco, folder):
    assert format_defects([]) == "No defects."
    for i in range(25):
        coco["annotations"].append({**coco["annotations"][0], "id": 100 + i, "category_id": 5})
    report = format_defects(inspect_dataset(coco, str(folder)).defects)
    assert "25 defects" in report and "unknown_category: 25" in report
    line = "  1.png, image 1, annotation 100: there is no category with the id 5"
    assert line in report.splitlines()
    assert "annotation 119:" in report and "annotation 120:" not in report
    assert "... and 5 more" in report
