"""The comparison of variants: what is run, what is kept, and the table."""

import json
import subprocess
import sys

import pytest
import yaml
from processes import REPO

from tools.ablation import read_runs, table
from yolact_d2 import load_config
from yolact_d2.data.shapes import HARD, generate_shapes

VARIANTS = {
    "config": "yolact_hard_shapes",
    "opts": {"SOLVER.MAX_ITER": 2, "INPUT.IMAGE_SIZE": 96, "DATASETS.TEST": ["shapes_hard_val"]},
    "variants": {
        "YOLACT": None,
        "modern": {"config": "yolact_modern_shapes", "SOLVER.MAX_ITER": 1},
        "Mask R-CNN": {
            "config": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
            "DATASETS.TRAIN": ["shapes_hard_train"],
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 1,
            "MODEL.WEIGHTS": "",
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.ROI_HEADS.NUM_CLASSES": 8,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
            "INPUT.MIN_SIZE_TRAIN": [64],
            "INPUT.MIN_SIZE_TEST": 64,
        },
    },
}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(VARIANTS, sort_keys=False))
    return tmp_path / "variants.yaml"


def test_runs_have_the_overrides_of_their_variant(path, tmp_path):
    runs = read_runs(str(path), [3, 4], tmp_path / "out", ["SOLVER.MAX_ITER", "7"])
    assert [run.variant for run in runs] == ["YOLACT", "modern", "Mask R-CNN"] * 2
    configs = [load_config(run.config_file, run.opts) for run in runs]
    assert [cfg.SEED for cfg in configs] == [3, 3, 3, 4, 4, 4]
    assert [cfg.MODEL.META_ARCHITECTURE for cfg in configs[:3]] == ["YOLACT"] * 2 + [
        "GeneralizedRCNN"
    ]
    assert [cfg.MODEL.YOLACT.ASSIGNER for cfg in configs[:2]] == ["max_iou", "task_aligned"]
    assert {cfg.INPUT.IMAGE_SIZE for cfg in configs} == {96}
    assert {cfg.SOLVER.MAX_ITER for cfg in configs} == {7}
    assert configs[4].OUTPUT_DIR == str(tmp_path / "out" / "modern" / "4")


def test_each_run_has_its_own_seed_and_folder(path, tmp_path):
    runs = read_runs(str(path), [3, 4], tmp_path, [])
    configs = [load_config(run.config_file, run.opts) for run in runs]
    assert [cfg.SEED for cfg in configs] == [3, 3, 3, 4, 4, 4]
    assert [cfg.OUTPUT_DIR for cfg in configs] == [str(run.folder) for run in runs]
    with pytest.raises(ValueError, match="two runs have the folder"):
        read_runs(str(path), [1, 1], tmp_path, [])
    with pytest.raises(ValueError, match="set SEED and OUTPUT_DIR"):
        read_runs(str(path), [1], tmp_path, ["SEED", "7"])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "config, opts and variants"),
        (["a"], "config, opts and variants"),
        ({"variant": {}}, "config, opts and variants"),
        ({"config": "yolact_shapes"}, "dict of variants"),
        ({"config": "yolact_shapes", "variants": ["a"]}, "dict of variants"),
        ({"config": "yolact_shapes", "variants": {"a": ["SEED", 1]}}, "KEY: VALUE"),
        ({"config": "yolact_shapes", "opts": ["x"], "variants": {"a": None}}, "KEY: VALUE"),
        ({"config": "yolact_shapes", "variants": {"a": {"SEED": 7}}}, "set SEED"),
        ({"variants": {"a": None}}, "a has no config"),
        ({"config": "yolact_shapes", "variants": {"a/b": None, "a-b": None}}, "the folder .*a-b"),
    ],
)
def test_wrong_files_are_named(content, message, path, tmp_path):
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        read_runs(str(path), [1], tmp_path, [])


def test_names_may_be_numbers_and_runs_are_tested_on_one_dataset(path, tmp_path):
    path.write_text("config: yolact_shapes\nvariants: {1: {DATASETS.TEST: []}}")
    (run,) = read_runs(str(path), [2], tmp_path, [])
    assert run.variant == "1" and run.folder == tmp_path / "1" / "2"
    with pytest.raises(ValueError, match="1: DATASETS.TEST must be one dataset"):
        run.config()


def test_table_has_mean_and_spread(path, tmp_path):
    runs = read_runs(str(path), [1, 2, 3], tmp_path, [])
    aps = iter([10.0, 20.0, 30.0, 13.0, 24.0, 36.0, 12.0, 26.0, 36.0])
    results = [
        {"num_parameters": 1_500_000, "cpu_seconds": 60.0 * i, "box_ap": ap, "mask_ap": ap - 1}
        for i, ap in enumerate(aps)
    ]
    results[-1] = None  # a run that failed
    assert table(runs, results).splitlines()[2:] == [
        "| YOLACT | 1.50 M | 3.0 | 11.7 (10.0 to 13.0) | 10.7 (9.0 to 12.0) |",
        "| modern | 1.50 M | 4.0 | 23.3 (20.0 to 26.0) | 22.3 (19.0 to 25.0) |",
        "| Mask R-CNN (2 of 3 runs) | 1.50 M | 3.5 | 33.0 (30.0 to 36.0) | 32.0 (29.0 to 35.0) |",
    ]


@pytest.mark.slow
def test_program_trains_what_is_missing(path, tmp_path):
    generate_shapes(str(tmp_path / "shapes_hard"), 8, 3, num_test=0, setting=HARD)
    command = [sys.executable, str(REPO / "tools" / "ablation.py"), str(path), "--seeds", "5",
               "--output", str(tmp_path / "out")]  # fmt: skip
    env = {"PATH": "", "PYTHONPATH": str(REPO), "DETECTRON2_DATASETS": str(tmp_path)}

    def run(*args):
        return subprocess.run([*command, *args], env=env, capture_output=True, text=True)

    done = run("--opts", "DATALOADER.NUM_WORKERS", "0")
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / "out" / name / "5" / "result.json" for name in VARIANTS["variants"]]
    results = [json.loads(path.read_text()) for path in paths]
    assert all(result["cpu_seconds"] > 1 and 0 <= result["mask_ap"] <= 100 for result in results)
    written = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    again = run("--opts", "DATALOADER.NUM_WORKERS", "0")
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert [path.stat().st_mtime_ns == t for path, t in zip(paths, written)] == [True, False, True]
    content = yaml.safe_load(path.read_text())
    content["variants"]["modern"]["MODEL.YOLACT.PRIOR_PROB"] = 0.02
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    written = [path.stat().st_mtime_ns for path in paths]
    run("--opts", "DATALOADER.NUM_WORKERS", "0")
    assert [path.stat().st_mtime_ns == t for path, t in zip(paths, written)] == [True, False, True]
    wrong = run("--opts", "MODEL.YOLACT.ASSIGNERS", "atss")
    assert wrong.returncode == 2 and "ASSIGNERS" in wrong.stderr
