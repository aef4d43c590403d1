"""Training, evaluation and demo on a COCO JSON of one's own, run as a user runs them."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from detectron2.data import DatasetCatalog
from pycocotools.coco import COCO

from yolact_d2 import load_config
from yolact_d2.data import COCODataset, use_coco_datasets
from yolact_d2.data.shapes import generate_shapes
from yolact_d2.evaluation import UsableCOCOEvaluator

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG = os.path.join(REPO, "configs", "yolact_shapes.yaml")
SMALL = "MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 4"
# Low enough for a model that has hardly been trained to find something.
LOW = ["MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", "0.0"]
# By the number of the category in the shapes. The order in the file is none of the ids'.
IDS = {1: 7, 2: 1000, 3: 3}
NAMES = {7: "Kreis", 1000: "no", 3: "a b"}
IN_ORDER = ["a b", "Kreis", "no"]


def to_rle(polygons, image, compressed):
    rle = mask_util.merge(mask_util.frPyObjects(polygons, image["height"], image["width"]))
    if compressed:
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    columns = mask_util.decode(rle).flatten(order="F")
    ends = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *ends, len(columns)]).tolist()
    return {"size": rle["size"], "counts": [0, *counts] if columns[0] else counts}


def make_own(path):
    """Of a shapes file: odd ids, no info, no licenses, polygons and both kinds of RLE, images
    without annotations, annotations without area and iscrowd."""
    coco = json.loads(path.read_text())
    images = {image["id"]: image for image in coco["images"]}
    annotations = [a for a in coco["annotations"] if a["category_id"] in IDS and a["image_id"] != 2]
    for i, annotation in enumerate(annotations):
        annotation["category_id"] = IDS[annotation["category_id"]]
        if i % 3:
            image = images[annotation["image_id"]]
            annotation["segmentation"] = to_rle(annotation["segmentation"], image, i % 3 == 1)
        if i % 2:
            del annotation["area"], annotation["iscrowd"]
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    path.write_text(
        json.dumps({"images": coco["images"], "annotations": annotations, "categories": categories})
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with train.json, val.json and the pictures in train/ and val/."""
    root = tmp_path_factory.mktemp("own")
    generate_shapes(str(root), num_train=5, num_val=3)
    for split in ("train", "val"):
        os.rename(root / "annotations" / f"instances_{split}.json", root / f"{split}.json")
        make_own(root / f"{split}.json")
    return root


def flags(own, *splits):
    return [
        word
        for split in splits
        for word in (f"--{split}-json", own / f"{split}.json", f"--{split}-images", own / split)
    ]


def run(program, *args, cwd):
    return subprocess.run(
        [sys.executable, os.path.join(REPO, program), *map(str, args)],
        cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


def train(own, *args, cwd, config=CONFIG):
    return run("train_net.py", "--config-file", config, *args, cwd=cwd)


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = train(
        own, *flags(own, "train", "val"), *SMALL.split(), *LOW,
        "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", folder, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_training_stores_classes_and_evaluates(trained, own):
    yolact = yaml.safe_load((trained / "config.yaml").read_text())["MODEL"]["YOLACT"]
    assert yolact["NUM_CLASSES"] == 3
    assert yolact["CLASS_NAMES"] == IN_ORDER
    assert yolact["CATEGORY_IDS"] == [3, 7, 1000]
    metrics = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert {"segm/AP", "segm/AP-Kreis", "segm/AP-no"} <= set(metrics[-1])
    results = json.loads((trained / "inference" / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in results} <= set(NAMES)
    assert {result["image_id"] for result in results} == {1, 2, 3}


def test_evaluation_alone_knows_the_classes(trained, own, tmp_path):
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    evaluate = ["--eval-only", *flags(own, "val"), *weights]
    done = train(own, *evaluate, config=trained / "config.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    expected = ",".join(f"{metrics[f'segm/{key}']:.4f}" for key in ("AP", "AP50", "AP75"))
    assert expected in done.stdout


@pytest.mark.parametrize("change", [{"name": "other"}, {"id": 4}])
@pytest.mark.parametrize("again", ["--eval-only", "--resume"])
def test_a_trained_model_keeps_its_classes(trained, own, tmp_path, change, again):
    """With the config that it was trained from, too, which does not know them."""
    coco = json.loads((own / "val.json").read_text())
    category = next(c for c in coco["categories"] if c["id"] == 3)
    category.update(change)
    for annotation in coco["annotations"]:
        if annotation["category_id"] == 3:
            annotation["category_id"] = category["id"]
    (tmp_path / "other.json").write_text(json.dumps(coco))
    split = "val" if again == "--eval-only" else "train"
    before = (trained / "config.yaml").read_text()
    done = train(
        own, again, f"--{split}-json", tmp_path / "other.json", f"--{split}-images", own / "val",
        *SMALL.split(), "MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", trained,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "other.json has the classes" in done.stderr and "was trained on" in done.stderr
    assert (trained / "config.yaml").read_text() == before


def test_resume_goes_on(trained, own):
    done = train(
        own, "--resume", *flags(own, "train"), *SMALL.split(), "SOLVER.MAX_ITER", 3,
        "OUTPUT_DIR", trained, cwd=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 2" in done.stdout
    assert "Evaluation" not in done.stdout


def test_the_demo_shows_the_names(trained, own, tmp_path):
    done = run(
        "demo/demo.py", "--config-file", trained / "config.yaml", "--input", own / "val",
        "--output", tmp_path / "drawn", "--results-json", tmp_path / "results.json",
        "--confidence-threshold", 0, "--top-k", 5,
        "--opts", "MODEL.WEIGHTS", trained / "model_final.pth", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 15
    assert all(NAMES[result["category_id"]] == result["category_name"] for result in results)
    assert len(os.listdir(tmp_path / "drawn")) == 3
    # They are numbered as COCO's pictures are, which these are not: 000000.png is image 1.
    for result in results:
        result["image_id"] += 1
    COCO(str(own / "val.json")).loadRes(results)


def test_area_and_crowd_are_filled_in(own):
    original = json.loads((own / "val.json").read_text())["annotations"]
    use_coco_datasets(
        load_config(CONFIG), None, COCODataset(str(own / "val.json"), str(own / "val"))
    )
    DatasetCatalog.get("own_val")  # which fills in the metadata
    coco = UsableCOCOEvaluator("own_val")._coco_api
    assert len(coco.anns) == len(original) > 4
    assert any("area" not in a for a in original)
    for i, (annotation, before) in enumerate(zip(coco.dataset["annotations"], original)):
        assert annotation["iscrowd"] == 0
        if "area" not in before:
            assert annotation["area"] == coco.annToMask(annotation).sum()
        else:
            assert annotation == {**before, "id": i + 1}


def _with(change):
    def changed(coco):
        change(coco)
        return json.dumps(coco)

    return changed


def _with_first(**change):
    """Changes to the first annotation."""
    return _with(lambda coco: coco["annotations"][0].update(change))


BAD_FILES = {
    "no JSON": (lambda coco: "{", "cannot be read as JSON"),
    "a list": (lambda coco: "[]", "has no list 'images'"),
    "no annotations": (_with(lambda coco: coco.pop("annotations")), "has no list 'annotations'"),
    "no categories": (_with(lambda coco: coco["categories"].clear()), "no categories"),
    "nothing to train on": (_with(lambda coco: coco["annotations"].clear()), "no objects"),
    "category id that is a text": (
        _with(lambda coco: (coco["categories"].append({"id": "x", "name": "y"}))), "'x'"
    ),
    "two of an id": (
        _with(lambda coco: coco["images"].append(coco["images"][0])), "two have the image id 1"
    ),
    "image without size": (
        _with(lambda coco: coco["images"][1].pop("width")), "image number 1 (from 0) has no 'width'"
    ),
    "unknown category": (
        _with(lambda coco: coco["annotations"][0].update(category_id=8)), "category_id 8"
    ),
    "annotation id that is a text": (
        _with(lambda coco: coco["annotations"][0].update(id="a0")), "'a0' is not a number"
    ),
    "image id that is a list": (
        _with(lambda coco: coco["images"][0].update(id=[1])), "image id [1] is not a number"
    ),
    "mask of another size": (
        _with_first(segmentation={"size": [8, 8], "counts": "0"}), "has an RLE of 8 x 8 pixels"
    ),
    "flat polygon": (
        _with_first(segmentation=[1, 2, 3, 4, 5, 6]), "has a polygon that is not a list"
    ),
    "polygon of text": (
        _with_first(segmentation=[["1", "2", "3", "4", "5", "6"]]), "has a polygon that is not"
    ),
    "no polygons": (_with_first(segmentation=[]), "has no 'segmentation'"),
    "box of three": (_with_first(bbox=[1, 2, 3]), "has the bbox [1, 2, 3], not four"),
    "box that is not finite": (
        _with_first(bbox=[1, 2, float("inf"), 4]), "has the bbox [1, 2, inf, 4], not four"
    ),
    "crowd flag that is a text": (_with_first(iscrowd="0"), "has the iscrowd '0', not 0 or 1"),
    "category id of an annotation that is true": (
        _with(
            lambda coco: (
                coco["categories"].append({"id": 1, "name": "one"}),
                coco["annotations"][0].update(category_id=True),
            )
        ),
        "has the category_id True, not a whole number",
    ),
    "image id that no set holds": (_with_first(image_id=[1]), "image_id [1], and there is none"),
    "annotation that is none": (
        _with(lambda coco: coco["annotations"].append(None)), "has no 'id'"
    ),
    "image of half a pixel more": (
        _with(lambda coco: coco["images"][0].update(width=128.5)), "128.5 x"
    ),
    "unknown image": (
        _with(lambda coco: coco["annotations"][0].update(image_id=80)), "image_id 80"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named_with_its_defect(own, tmp_path, name):
    change, message = BAD_FILES[name]
    path = tmp_path / "bad.json"
    path.write_text(change(json.loads((own / "train.json").read_text())))
    with pytest.raises(ValueError) as error:
        own_train = COCODataset(str(path), str(own / "train"))
        use_coco_datasets(load_config(CONFIG), own_train, own_train)
    assert message in str(error.value) and str(path) in str(error.value)


def test_different_categories_are_named(own, tmp_path):
    coco = json.loads((own / "val.json").read_text())
    coco["categories"][0]["name"] = "circle"
    (tmp_path / "other.json").write_text(json.dumps(coco))
    train = COCODataset(str(own / "train.json"), str(own / "train"))
    val = COCODataset(str(tmp_path / "other.json"), str(own / "val"))
    with pytest.raises(ValueError) as error:
        use_coco_datasets(load_config(CONFIG), train, val)
    assert f"only in {train.json_file}: 7 (Kreis)" in str(error.value)
    assert f"only in {val.json_file}: 7 (circle)" in str(error.value)


def test_classes_of_another_model_are_refused(own):
    cfg = load_config(CONFIG, ["MODEL.YOLACT.CLASS_NAMES", "['a','b','c']"])
    val = COCODataset(str(own / "val.json"), str(own / "val"))
    with pytest.raises(ValueError, match=r"but the model was trained on \['a', 'b', 'c'\]"):
        use_coco_datasets(cfg, None, val, trained_with=cfg)
    use_coco_datasets(cfg, None, val)  # fine-tuning may
    assert cfg.MODEL.YOLACT.CLASS_NAMES == IN_ORDER


@pytest.mark.parametrize(
    "args, message",
    [
        (["--train-json", "{own}/train.json"], "--train-images must be given together"),
        (["--val-images", "{own}/val"], "--val-images must be given together"),
        (["--train-json", "no.json", "--train-images", "{own}"], "no file 'no.json'"),
        (["--train-json", "{own}/train.json", "--train-images", "no"], "no folder 'no'"),
        (["--val-json", "{own}/val.json", "--val-images", "{own}/val"], "needs --train-json"),
        (
            ["--eval-only", "--train-json", "{own}/train.json", "--train-images", "{own}/train"],
            "--eval-only evaluates on --val-json",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(own, tmp_path, args, message, monkeypatch, capsys):
    program = os.path.join(REPO, "train_net.py")
    monkeypatch.setattr(sys, "argv", [program, *(arg.format(own=own) for arg in args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(program, run_name="__main__")
    assert end.value.code == 2
    assert message in capsys.readouterr().err
