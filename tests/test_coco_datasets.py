"""Training, evaluation and demo on COCO JSON files, run as a user runs them."""

import json
import os
from collections import Counter

import pytest
import yaml
from coco_examples import rle
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from plain import assert_equal
from processes import REPO, assert_refused, run_here, run_programs
from pycocotools.coco import COCO

from yolact_d2 import load_config
from yolact_d2.data import (
    COCODataset,
    build_test_loader,
    build_train_loader,
    check_datasets,
    use_coco_datasets,
)
from yolact_d2.data.shapes import generate_shapes
from yolact_d2.evaluation import build_evaluator

CONFIG = str(REPO / "configs" / "yolact_shapes.yaml")
SMALL = "MODEL.DEVICE cpu INPUT.IMAGE_SIZE 64 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 4"
# Low enough for a model that has hardly been trained to find something.
LOW = ["MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", "0.0"]
# By the id of the category in the shapes. The file does not have them in the order of ids.
IDS = {1: 7, 2: 1000, 3: 3}
NAMES = {7: "Kreis", 1000: "no", 3: "a b"}
IN_ORDER = ["a b", "Kreis", "no"]


def change_json(path):
    """Make of a shapes file one with gaps in the ids, without info and licenses, with polygons and
    both kinds of RLE, crowds, images without annotations, annotations without area and iscrowd."""
    coco, shapes = json.loads(path.read_text()), COCO(str(path))
    annotations = [a for a in coco["annotations"] if a["category_id"] in IDS and a["image_id"] != 2]
    for i, annotation in enumerate(annotations):
        if i % 3:
            annotation["segmentation"] = rle(shapes.annToMask(annotation), compressed=i % 3 == 1)
        annotation["category_id"] = IDS[annotation["category_id"]]
        if i % 2:
            del annotation["area"], annotation["iscrowd"]
        elif i % 8 == 4:
            annotation["iscrowd"] = 1
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    path.write_text(
        json.dumps({"images": coco["images"], "annotations": annotations, "categories": categories})
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with train.json, val.json and the images in train/ and val/."""
    root = tmp_path_factory.mktemp("data")
    generate_shapes(str(root), num_train=5, num_val=3)
    for split in ("train", "val"):
        os.rename(root / "annotations" / f"instances_{split}.json", root / f"{split}.json")
        change_json(root / f"{split}.json")
    return root


def change_category(path, changed_path, change):
    """Write a JSON in which the category 3 is changed."""
    coco = json.loads(path.read_text())
    category = next(c for c in coco["categories"] if c["id"] == 3)
    category.update(change)
    for annotation in coco["annotations"]:
        if annotation["category_id"] == 3:
            annotation["category_id"] = category["id"]
    changed_path.write_text(json.dumps(coco))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """OUTPUT_DIR of a training."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def runs(data, output):
    """Programs that ran one after the other: a training, and what may follow it."""
    change_category(data / "val.json", data / "named.json", {"name": "other"})
    change_category(data / "train.json", data / "numbered.json", {"id": 4})
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    options = [*SMALL.split(), *LOW, "OUTPUT_DIR", output]
    train = [f"{REPO}/train_net.py", "--config-file"]
    datasets = [
        "--train-json", data / "train.json", "--train-images", data / "train",
        "--val-json", data / "val.json", "--val-images", data / "val",
    ]  # fmt: skip
    commands = {
        "train": [*train, CONFIG, *datasets, *options, "SOLVER.MAX_ITER", 2],
        # With the config that training started from, which does not name the classes.
        "evaluate others": [
            *train, CONFIG, "--eval-only", "--val-json", data / "named.json", "--val-images", data,
            *options, *weights,
        ],
        "resume with others": [
            *train, CONFIG, "--resume", "--train-json", data / "numbered.json", "--train-images",
            data, *options,
        ],
        "demo": [
            f"{REPO}/demo/demo.py", "--config-file", output / "config.yaml", "--input",
            data / "val", "--output", output / "drawn", "--results-json", output / "results.json",
            "--confidence-threshold", 0, "--top-k", 5, "--opts", *weights,
        ],
    }  # fmt: skip
    return dict(zip(commands, run_programs(*commands.values())))


@pytest.mark.slow
def test_training_saves_the_classes_and_evaluates(runs, output):
    assert runs["train"].returncode == 0, runs["train"].stderr
    yolact = yaml.safe_load((output / "config.yaml").read_text())["MODEL"]["YOLACT"]
    assert yolact["NUM_CLASSES"] == 3
    assert yolact["CLASS_NAMES"] == IN_ORDER
    assert yolact["CATEGORY_IDS"] == [3, 7, 1000]
    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in results} <= set(NAMES)
    assert {result["image_id"] for result in results} == {1, 2, 3}
    assert "segm/AP-Kreis" in (output / "metrics.json").read_text()


@pytest.mark.slow
def test_other_classes_than_the_trained_ones_are_refused(runs):
    for name, file in (("evaluate others", "named"), ("resume with others", "numbered")):
        assert_refused(runs[name], f"{file}.json has the classes", "was trained on")


@pytest.mark.slow
def test_demo_writes_the_class_names(runs, output, data):
    assert runs["demo"].returncode == 0, runs["demo"].stderr
    results = json.loads((output / "results.json").read_text())
    assert len(results) == 15
    assert all(NAMES[result["category_id"]] == result["category_name"] for result in results)
    assert len(os.listdir(output / "drawn")) == 3
    # The demo takes the ids from the names of files, as COCO does: 000000.png, here image 1, is 0.
    for result in results:
        result["image_id"] += 1
    COCO(str(data / "val.json")).loadRes(results)


@pytest.fixture
def datasets(data):
    return [
        COCODataset(str(data / f"{split}.json"), str(data / split)) for split in ("train", "val")
    ]


def test_dicts_and_metadata_are_those_of_detectron2(datasets):
    train, val = datasets
    use_coco_datasets(load_config(CONFIG), train, val)
    for name, dataset in (("custom_train", train), ("custom_val", val)):
        expected = load_coco_json(*dataset, f"expected {name}")
        assert any("counts" in a["segmentation"] for x in expected for a in x["annotations"])
        for _ in range(2):  # the training JSON is read again
            assert_equal(DatasetCatalog.get(name), expected)
        ours, theirs = MetadataCatalog.get(name), MetadataCatalog.get(f"expected {name}")
        assert ours.thing_classes == theirs.thing_classes == IN_ORDER
        key = "thing_dataset_id_to_contiguous_id"
        assert ours.get(key) == theirs.get(key) == {3: 0, 7: 1, 1000: 2}


def test_a_json_that_has_changed_is_read_again(datasets, tmp_path):
    _, val = datasets
    content = json.loads(open(val.json_file).read())
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    use_coco_datasets(load_config(CONFIG), None, COCODataset(str(path), val.image_root))
    for annotation in DatasetCatalog.get("custom_val")[0]["annotations"]:
        annotation["bbox"][0] = -99  # the ground truth stays as it is
    assert (
        build_evaluator(load_config(CONFIG), "custom_val")._coco_api.dataset["annotations"][0][
            "bbox"
        ]
        == content["annotations"][0]["bbox"]
    )
    content["annotations"] = content["annotations"][:3]
    path.write_text(json.dumps(content))
    assert sum(len(x["annotations"]) for x in DatasetCatalog.get("custom_val")) == 3
    assert len(build_evaluator(load_config(CONFIG), "custom_val")._coco_api.anns) == 3
    content["categories"][0]["name"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="val.json has changed: its categories were"):
        DatasetCatalog.get("custom_val")


def test_each_json_is_parsed_once(datasets, tmp_path, monkeypatch):
    cfg = load_config(CONFIG, [*SMALL.split(), "OUTPUT_DIR", str(tmp_path)])
    train, val = datasets
    parsed, load = Counter(), json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.update([file.name]) or load(file))
    use_coco_datasets(cfg, train, val)
    check_datasets(cfg, "DATASETS.TRAIN")
    check_datasets(cfg, "DATASETS.TEST")
    next(iter(build_train_loader(cfg)))
    for _ in range(2):
        next(iter(build_test_loader(cfg, "custom_val")))
        build_evaluator(cfg, "custom_val")
    assert parsed == {train.json_file: 1, val.json_file: 1}
    assert DatasetCatalog["custom_train"]._coco is None  # freed


def test_fatal_issue_names_the_file(data, tmp_path):
    path, original = tmp_path / "bad.json", (data / "train.json").read_text()
    for change, message in (
        (lambda coco: coco["categories"][0].update(id="x"), "categories[0] has the 'id' 'x'"),
        (lambda coco: coco["categories"].clear(), "'categories' is empty"),
    ):
        coco = json.loads(original)
        change(coco)
        path.write_text(json.dumps(coco))
        with pytest.raises(ValueError) as error:
            use_coco_datasets(load_config(CONFIG), COCODataset(str(path), str(data)), None)
        assert str(path) in str(error.value) and message in str(error.value)


def test_different_categories_are_named(data, datasets, tmp_path):
    change_category(data / "val.json", tmp_path / "other.json", {"name": "circle"})
    train, val = datasets
    val = val._replace(json_file=str(tmp_path / "other.json"))
    with pytest.raises(ValueError) as error:
        use_coco_datasets(load_config(CONFIG), train, val)
    assert f"only in {train.json_file}: [(3, 'a b')]" in str(error.value)
    assert f"only in {val.json_file}: [(3, 'circle')]" in str(error.value)


def test_classes_of_another_model_are_refused(datasets):
    cfg = load_config(CONFIG, ["MODEL.YOLACT.CLASS_NAMES", "['a','b','c']"])
    train, val = datasets
    with pytest.raises(ValueError, match=r"but the model was trained on \['a', 'b', 'c'\]"):
        use_coco_datasets(cfg, None, val, trained_with=cfg)
    use_coco_datasets(cfg, None, val)  # fine-tuning may
    assert cfg.MODEL.YOLACT.CLASS_NAMES == IN_ORDER
    use_coco_datasets(cfg, train, None, trained_with=cfg)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("custom_train",), ())


def test_flags_that_do_not_fit_are_refused(data):
    both = "--train-json {data}/train.json --train-images {data}/train"
    for args, message in (
        ("--train-json {data}/train.json", "--train-images must be given together"),
        ("--val-images {data}/val", "--val-images must be given together"),
        ("--train-json no.json --train-images {data}", "no file 'no.json'"),
        ("--train-json {data}/train.json --train-images no", "no folder 'no'"),
        ("--val-json {data}/val.json --val-images {data}/val", "needs --train-json"),
        (f"--eval-only {both}", "--eval-only evaluates on --val-json"),
    ):
        assert_refused(run_here("train_net.py", *args.format(data=data).split()), message)
