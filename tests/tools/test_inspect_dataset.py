import json
import os

import cv2
import pytest
from processes import REPO, assert_refused, run_tool, run_tools

from yolact_d2.data.shapes import generate_shapes

CONFIG = REPO / "configs" / "yolact_shapes.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The folder of a small dataset without defects."""
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(str(root), num_train=4, num_val=1)
    return root


@pytest.fixture
def coco(shapes):
    return json.loads((shapes / "annotations" / "instances_train.json").read_text())


def test_sound_dataset_is_counted_and_drawn(shapes, coco, tmp_path):
    pictures = tmp_path / "new" / "folder"
    done = run_tool(
        "inspect_dataset", "--json", shapes / "annotations" / "instances_train.json",
        "--images", shapes / "train", "--image-sizes", 20, 160, "--samples", 3,
        "--output", pictures, "--config-file", CONFIG, "--opts", "INPUT.IMAGE_SIZE", 96,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "No defects." in done.stdout
    assert "4/4" in done.stderr  # the progress bar
    rows = [line.split() for line in done.stdout.splitlines()]
    num_stars = sum(a["category_id"] == 4 for a in coco["annotations"])
    assert ["star", "4"] in [row[:2] for row in rows]
    assert next(row[3] for row in rows if row[:1] == ["star"]) == str(num_stars)
    total = next(row for row in rows if row[:1] == ["all"])
    assert total[2] == str(len(coco["annotations"]))
    assert int(total[4]) > int(total[5]) == 0  # at 20 shapes are lost, at 160 none
    names = sorted(os.listdir(pictures))
    assert len(names) == 3 and names[0] == "001_000000.png"
    for name in names:
        drawing = cv2.imread(str(pictures / name))
        assert drawing.shape == (96, 96, 3) and drawing.std() > 10


def test_defects_are_named_and_written(shapes, coco, tmp_path):
    (tmp_path / "images").mkdir()
    for image in coco["images"][:3]:
        data = (shapes / "train" / image["file_name"]).read_bytes()
        (tmp_path / "images" / image["file_name"]).write_bytes(data)
    (tmp_path / "images" / "000000.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    annotation = next(a for a in coco["annotations"] if a["image_id"] == 2)
    annotation["category_id"] = 77
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    done = run_tool(
        "inspect_dataset", "--json", tmp_path / "coco.json", "--images", tmp_path / "images",
        "--defects-json", tmp_path / "defects.json", "--samples", 9, "--output", tmp_path / "out",
        "--config-file", CONFIG,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "3 defects" in done.stdout and "unreadable_image: 1" in done.stdout
    defects = json.loads((tmp_path / "defects.json").read_text())
    found = [(d["kind"], d["file"], d["image_id"], d["annotation_id"]) for d in defects]
    assert found == [
        ("unreadable_image", "000000.png", 1, None),
        ("missing_image", "000003.png", 4, None),
        ("unknown_category", "000001.png", 2, annotation["id"]),
    ]
    # Samples are those images that have no defect.
    assert os.listdir(tmp_path / "out") == ["001_000002.png"]
    assert sorted(os.listdir(tmp_path)) == ["coco.json", "defects.json", "images", "out"]


def test_empty_folder_is_defects_and_bad_input_is_refused(shapes, tmp_path):
    good = shapes / "annotations" / "instances_train.json"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "config.yaml").write_text("NO_SUCH_KEY: 1")
    images = ("--images", shapes / "train")
    samples = ("--samples", "1", "--output", tmp_path / "out", "--config-file")
    empty, *refused = run_tools(
        "inspect_dataset",
        ("--json", good, "--images", tmp_path / "empty"),
        ("--json", tmp_path / "missing.json", *images),
        ("--json", tmp_path / "text.json", *images),
        ("--json", good, "--images", tmp_path / "nowhere"),
        ("--json", good, *images, *samples, tmp_path / "config.yaml"),
        ("--json", good, *images, "--defects-json", tmp_path / "text.json" / "a.json"),
    )
    assert empty.returncode == 1 and "missing_image: 4" in empty.stdout
    assert_refused(refused[0], tmp_path / "missing.json")
    assert_refused(refused[1], tmp_path / "text.json", "cannot be read as JSON")
    assert_refused(refused[2], f"there is no folder {tmp_path / 'nowhere'}")
    assert_refused(refused[3], "NO_SUCH_KEY")
    assert_refused(refused[4], tmp_path / "text.json" / "a.json")
    # Refused before the images are read.
    assert not any("images/s" in done.stderr for done in refused)
