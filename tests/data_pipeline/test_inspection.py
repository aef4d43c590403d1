"""inspect_dataset finds each issue, by kind and id, and nothing in a valid dataset.

test_annotations.py has more faults of annotations, and what training does with them.
"""

import copy

import numpy as np
import pytest
from coco_examples import (
    BOX,
    HEIGHT,
    WIDTH,
    annotation,
    coco_json,
    polygon,
    rectangle,
    rle,
    write_image,
)
from PIL import Image

from yolact_d2.data.coco_json import read_coco
from yolact_d2.data.inspection import format_issues, inspect_dataset
from yolact_d2.data.issues import KINDS, Severity

VALID = coco_json(
    [
        annotation(id=10, category_id=7),
        annotation(id=11, image_id=2, category_id=3, segmentation=rle(rectangle(*BOX))),
        annotation(
            id=12, image_id=2, category_id=1000, iscrowd=1,
            segmentation=rle(rectangle(*BOX), compressed=False),
        ),
    ],
    num_images=2, file_name="sub/2.png",
)  # fmt: skip
VALID["categories"] = [{"id": i, "name": f"class {i}"} for i in (7, 1000, 3)]
del VALID["annotations"][0]["area"]
FATAL, DROPPED, NOTE = Severity
# Changes to annotation 10, the issues then, and the most severe of them.
ANNOTATIONS = [
    (
        {"bbox": [-2.5, 4, 17.5, 8], "segmentation": [polygon(-2.5, 4, 17.5, 8)]},
        "box_outside mask_outside", NOTE,
    ),
    ({"bbox": [5, 4, 10, 27.5]}, "box_outside mask_box_mismatch", NOTE),
    ({"bbox": [-0.9, 4, 15.9, 8], "segmentation": [polygon(0, 4, 15, 8)]}, "", None),
    ({"bbox": [0, 4, 15, 8], "segmentation": [polygon(-0.9, 4, 15.9, 8)]}, "", None),
    ({"bbox": [0, 4, 15, 8], "segmentation": [polygon(-9, 4, 24, 8)]}, "mask_outside", NOTE),
    ({"bbox": [5, 4, 10]}, "bad_record", FATAL),
    ({"bbox": ["5", "4", "10", "8"]}, "bad_record", FATAL),
    ({"bbox": 7}, "bad_record", FATAL),
    ({"bbox": [[5, 4], 10, 8]}, "bad_record", FATAL),
    ({"segmentation": None}, "no_mask", FATAL),
    ({"segmentation": {}}, "no_mask", FATAL),
    ({"segmentation": [polygon(*BOX), [5, 4, 15, 4]]}, "degenerate_polygon", NOTE),
    ({"segmentation": [polygon(*BOX), [5, 4, 15, 4, 15, 4]]}, "degenerate_polygon", NOTE),
    ({"segmentation": [polygon(*BOX), [5, 4, 15, 12, 10, 8, 7, 5.6]]}, "degenerate_polygon", NOTE),
    ({"segmentation": [polygon(*BOX), []]}, "degenerate_polygon", NOTE),
    ({"segmentation": [[5, 4]]}, "degenerate_polygon", DROPPED),
    ({"segmentation": [polygon(*BOX)[:-1]]}, "bad_polygon", DROPPED),
    ({"segmentation": [[[5, 4], [15, 4], [15, 12]]]}, "bad_polygon", FATAL),
    ({"segmentation": [[*polygon(*BOX), 6, float("inf")]]}, "bad_polygon", FATAL),
    ({"segmentation": "mask.png"}, "bad_polygon", FATAL),
    ({"segmentation": rle(np.ones((WIDTH, HEIGHT), np.uint8))}, "rle_size", FATAL),
    ({"segmentation": {**rle(rectangle(*BOX)), "counts": "zz~"}}, "bad_rle", FATAL),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1199.5, 0.5]}}, "bad_rle", FATAL),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": {}}}, "bad_rle", FATAL),
    ({"segmentation": {"size": [HEIGHT], "counts": [1200]}}, "bad_rle", FATAL),
    ({"segmentation": {"counts": [1200]}}, "bad_rle", FATAL),
    ({"segmentation": [polygon(7.1, 4, 7.9, 8)]}, "mask_box_mismatch", NOTE),
    ({"segmentation": rle(rectangle(5, 4, 10, 11))}, "mask_box_mismatch", NOTE),
    ({"segmentation": [polygon(7, 4, 8, 8)]}, "", None),  # 2 pixels are tolerated
    ({"segmentation": rle(rectangle(5, 4, 9, 7))}, "", None),
    ({"segmentation": [[5, 4, 15, 12, 15, 4, 5, 12]]}, "", None),  # crosses itself
    ({"image_id": 5}, "unknown_image", FATAL),
    ({"id": 11}, "duplicate_id", FATAL),
    ({"id": None}, "bad_record", FATAL),
    ({"image_id": None}, "bad_record", FATAL),
    ({"image_id": [1]}, "bad_record", FATAL),
    ({"category_id": "7"}, "bad_record", FATAL),
    ({"image_id": "1"}, "bad_record", FATAL),
    ({"category_id": True}, "bad_record", FATAL),
    ({"iscrowd": "0"}, "bad_record", FATAL),
    ({"iscrowd": None}, "bad_record", FATAL),
    ({"iscrowd": True}, "", None),
    ({"ignore": 0}, "", None),
    ({"area": 80}, "", None),
    ({"area": 159.0}, "", None),
    ({"area": 161}, "wrong_area", NOTE),
    ({"area": 39}, "wrong_area", NOTE),
    ({"area": 161, "segmentation": rle(rectangle(*BOX))}, "wrong_area", NOTE),
    ({"area": 40, "segmentation": [[5, 4, 15, 12, 15, 4, 5, 12]]}, "", None),  # crosses itself
    ({"area": 80, "segmentation": [polygon(*BOX)] * 3}, "", None),
    ({"area": 0}, "bad_area", NOTE),
    ({"id": 0}, "annotation_id_0", NOTE),
]  # fmt: skip
# Changes to image 1, and the issue then.
IMAGES = [
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
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("1.png", "sub/2.png"):
        write_image(tmp_path / name)
    return tmp_path


@pytest.fixture
def coco():
    return copy.deepcopy(VALID)


def found(coco, folder):
    """(kind, image id, annotation id) of each issue."""
    issues = inspect_dataset(coco, str(folder)).issues
    assert {x.kind for x in issues} <= set(KINDS) and all(x.detail for x in issues)
    return [(x.kind, x.image_id, x.annotation_id) for x in issues]


def test_issues_of_an_annotation(coco, folder):
    assert found(coco, folder) == []
    for change, kinds, severity in ANNOTATIONS:
        changed = {**VALID["annotations"][0], **change}
        coco["annotations"] = [*VALID["annotations"][1:], changed]
        where = (changed["image_id"], changed["id"])
        assert found(coco, folder) == [(kind, *where) for kind in kinds.split()], change
        validated = inspect_dataset(coco, str(folder))
        assert {x.severity for x in validated.issues} == ({severity} if severity else set()), change
        assert (changed in validated.annotations) == (severity in (None, NOTE)), change
    for field in ("id", "image_id", "category_id", "bbox"):
        changed = {k: v for k, v in VALID["annotations"][0].items() if k != field}
        coco["annotations"] = [*VALID["annotations"][1:], changed]
        where = changed.get("image_id"), changed.get("id")
        assert found(coco, folder) == [("bad_record", *where)]


def test_large_boxes_may_differ_by_more_pixels(coco, folder):
    coco["images"][0].update(width=400, height=300)
    write_image(folder / "1.png", (400, 300))
    for box, expected in (
        ([19, 10, 191, 100], []),
        ([21, 10, 189, 100], [("mask_box_mismatch", 1, 10)]),
        ([10, 16, 200, 94], [("mask_box_mismatch", 1, 10)]),
    ):
        coco["annotations"][0].update(bbox=[10, 10, 200, 100], segmentation=[polygon(*box)])
        assert found(coco, folder) == expected


def test_issues_of_an_image(coco, folder):
    write_image(folder.parent / "outside.png")
    for change, kind in IMAGES:
        coco["images"][0] = {**VALID["images"][0], **change}
        assert found(coco, folder) == [(kind, 1, None)], change
        [issue] = inspect_dataset(coco, str(folder)).issues
        assert issue.file == coco["images"][0]["file_name"] and issue.severity is FATAL


def test_images_that_cannot_be_decoded(coco, folder):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    content = (folder / "1.png").read_bytes()
    # The header of the last is valid: only reading all of it tells, which no run waits for.
    for part, severity in ((content[:0], FATAL), (content[:20], FATAL), (content[:-30], DROPPED)):
        (folder / "1.png").write_bytes(part)
        assert found(coco, folder) == [("unreadable_image", 1, None)]
        assert inspect_dataset(coco, str(folder)).issues[0].severity is severity


def test_what_occurs_twice(coco, folder):
    coco["images"].append({**coco["images"][0], "file_name": "sub/3.png"})
    coco["images"].append({**coco["images"][0], "id": 5})
    coco["categories"] += [{"id": 3, "name": "again"}, {"id": 4, "name": "class 3"}]
    validated = inspect_dataset(coco, str(folder))
    assert [(x.kind, x.severity, x.file, x.image_id) for x in validated.issues[:2]] == [
        ("duplicate_id", FATAL, "sub/3.png", 1),
        ("duplicate_id", FATAL, None, None),
    ]
    assert "categories[3] has the id 3 of another" in validated.issues[1].detail
    assert [(x.kind, x.severity, x.detail) for x in validated.issues[2:]] == [
        ("duplicate_file", NOTE, "it has the image ids 1 and 5"),
        ("duplicate_name", NOTE, "the categories 3 and 4 are both 'class 3'"),
    ]
    assert [image["id"] for image in validated.images] == [1, 2, 5]
    assert [c["name"] for c in validated.categories if c["id"] == 3] == ["class 3"]


def test_crowd_regions_only(coco, folder):
    coco["annotations"] = [{**annotation, "iscrowd": 1} for annotation in coco["annotations"]]
    [issue] = inspect_dataset(coco, str(folder)).issues
    assert issue[:3] == ("crowds_only", FATAL, "all 3 annotations have iscrowd 1")


def test_records_that_are_no_dicts(coco, folder):
    for key in ("images", "annotations", "categories"):
        for record in (None, "text", []):
            changed = {**coco, key: [*coco[key], record]}
            assert found(changed, folder) == [("bad_record", None, None)]


def test_bad_category_is_reported_once(coco, folder):
    coco["categories"][0]["name"] = None
    assert found(coco, folder) == [("bad_record", None, None)]
    coco["categories"][0].update(id="7", name="seven")
    assert [kind for kind, *_ in found(coco, folder)] == ["bad_record", "unknown_category"]


def test_empty_lists(tmp_path):
    empty = {"images": [], "annotations": [], "categories": []}
    assert found(empty, tmp_path) == [("empty_list", None, None)] * 3


def test_all_issues_are_found_at_once(coco, folder):
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
    assert [image["id"] for image in inspect_dataset(coco, str(folder)).images] == [1, 2]


def test_files_of_other_formats_are_refused(tmp_path):
    path = tmp_path / "coco.json"
    for content, message in (
        (b"", "cannot be read as JSON"),
        (b"{'images': []}", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[]", "no list 'images'"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"images": [], "annotations": []}', "no list 'categories'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_coco(str(path))
        assert str(path) in str(error.value)


def test_report_names_file_and_ids_and_counts_the_rest(coco, folder):
    assert format_issues([]) == "No issues."
    for i in range(25):
        coco["annotations"].append({**coco["annotations"][0], "id": 100 + i, "category_id": 5})
    report = format_issues(inspect_dataset(coco, str(folder)).issues)
    assert "25 issues: 25 fatal" in report and "unknown_category: 25" in report
    line = "  fatal: 1.png, image 1, annotation 100: there is no category with id 5"
    assert line in report.splitlines()
    assert "annotation 119:" in report and "annotation 120:" not in report
    assert "... and 5 more" in report
