import json
import os

import cv2
import pytest
from processes import REPO, assert_refused, run_here

from yolact_d2.data.shapes import generate_shapes

CONFIG = REPO / "configs" / "yolact_shapes.yaml"


def run(*args):
    return run_here("tools/inspect_dataset.py", *args)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The folder of a small dataset without issues."""
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(str(root), num_train=4, num_val=1)
    return root


@pytest.fixture
def coco(shapes):
    return json.loads((shapes / "annotations" / "instances_train.json").read_text())


def test_statistics_and_samples(shapes, coco, tmp_path):
    drawings = tmp_path / "new" / "folder"
    done = run(
        "--json", shapes / "annotations" / "instances_train.json",
        "--images", shapes / "train", "--image-sizes", 20, 160, "--samples", 3,
        "--output", drawings, "--config-file", CONFIG, "--opts", "INPUT.IMAGE_SIZE", 96,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "No issues." in done.stdout
    assert "4/4" in done.stderr  # the progress bar
    rows = [line.split() for line in done.stdout.splitlines()]
    num_stars = sum(a["category_id"] == 4 for a in coco["annotations"])
    assert ["star", "4"] in [row[:2] for row in rows]
    assert next(row[3] for row in rows if row[:1] == ["star"]) == str(num_stars)
    total = next(row for row in rows if row[:1] == ["all"])
    assert total[2] == str(len(coco["annotations"]))
    assert int(total[4]) > int(total[5]) == 0  # at 20 shapes are lost, at 160 none
    names = sorted(os.listdir(drawings))
    assert len(names) == 3 and names[0] == "001_000000.png"
    for name in names:
        drawing = cv2.imread(str(drawings / name))
        assert drawing.shape == (96, 96, 3) and drawing.std() > 10


def test_samples_of_embedmask_keep_their_aspect_ratio(shapes, tmp_path):
    done = run(
        "--json", shapes / "annotations" / "instances_train.json", "--images", shapes / "train",
        "--samples", 2, "--output", tmp_path, "--config-file", "embedmask_shapes",
        "--opts", "INPUT.MIN_SIZE_TRAIN", "(96,)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "No issues." in done.stdout and "lost" not in done.stdout
    for name in os.listdir(tmp_path):
        drawing = cv2.imread(str(tmp_path / name))
        assert min(drawing.shape[:2]) == 96 and drawing.std() > 10


def test_issues_are_printed_and_written(shapes, coco, tmp_path):
    (tmp_path / "images").mkdir()
    for image in coco["images"][:3]:
        data = (shapes / "train" / image["file_name"]).read_bytes()
        (tmp_path / "images" / image["file_name"]).write_bytes(data)
    (tmp_path / "images" / "000000.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    annotation = next(a for a in coco["annotations"] if a["image_id"] == 2)
    annotation["category_id"] = 77
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    done = run(
        "--json", tmp_path / "coco.json", "--images", tmp_path / "images",
        "--defects-json", tmp_path / "defects.json", "--samples", 9, "--output", tmp_path / "out",
        "--config-file", CONFIG,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "3 issues: 3 fatal" in done.stdout and "unreadable_image: 1" in done.stdout
    issues = json.loads((tmp_path / "defects.json").read_text())
    found = [(d["kind"], d["file"], d["image_id"], d["annotation_id"]) for d in issues]
    assert found == [
        ("unreadable_image", "000000.png", 1, None),
        ("missing_image", "000003.png", 4, None),
        ("unknown_category", "000001.png", 2, annotation["id"]),
    ]
    # Only images without issues are drawn.
    assert os.listdir(tmp_path / "out") == ["001_000002.png"]
    assert sorted(os.listdir(tmp_path)) == ["coco.json", "defects.json", "images", "out"]


def test_empty_folder_and_bad_input(shapes, tmp_path):
    good = shapes / "annotations" / "instances_train.json"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no JSON")
    (tmp_path / "config.yaml").write_text("NO_SUCH_KEY: 1")
    images = ("--images", shapes / "train")
    samples = ("--samples", "1", "--output", tmp_path / "out", "--config-file")
    empty = run("--json", good, "--images", tmp_path / "empty")
    assert empty.returncode == 1 and "missing_image: 4" in empty.stdout
    for args, message in (
        (("--json", tmp_path / "missing.json", *images), tmp_path / "missing.json"),
        (("--json", tmp_path / "text.json", *images), "text.json cannot be read as JSON"),
        (("--json", good, "--images", tmp_path / "nowhere"), f"no folder {tmp_path / 'nowhere'}"),
        (("--json", good, *images, *samples, tmp_path / "config.yaml"), "NO_SUCH_KEY"),
        (("--json", good, *images, "--opts", "NO_KEY", "1"), "NO_KEY"),
        (("--json", good, *images, "--defects-json", tmp_path / "text.json/a.json"), "a.json"),
    ):
        done = run(*args)
        assert_refused(done, message)
        assert "images/s" not in done.stderr  # before the images are read
