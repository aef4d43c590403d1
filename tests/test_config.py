import glob
import os
import shutil

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from yolact_d2 import add_yolact_config, load_config
from yolact_d2.engine import Trainer

CONFIGS = sorted(
    glob.glob(os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs", "yolact_*.yaml"))
)
# Parameters of the authors' networks, in millions, background moved but not dropped.
MILLIONS = {
    "yolact_R_50_FPN_550": 31.16,
    "yolact_R_101_FPN_550": 50.16,
    "yolact_R_101_FPN_400": 50.16,
    "yolact_R_101_FPN_700": 50.16,
    "yolact_R_50_FPN_550_pascal": 30.73,
    "yolact_darknet53_FPN_550": 47.78,
    "yolact_plus_R_50_FPN_550": 33.77,
    "yolact_plus_R_101_FPN_550": 52.57,
}
IMAGE_SIZE_AND_ANCHORS = {
    "yolact_R_101_FPN_400": (400, [17, 34, 69, 139, 279]),
    "yolact_R_101_FPN_700": (700, [30, 61, 122, 244, 488]),
    "yolact_R_50_FPN_550_pascal": (550, [32, 64, 128, 256, 512]),
}


def name_of(path):
    return os.path.splitext(os.path.basename(path))[0]


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_builds_its_model(path):
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", False])
    model = build_model(cfg)
    assert type(model).__name__ == "YOLACT"
    name = name_of(path)
    if name in MILLIONS:
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        assert parameters == pytest.approx(MILLIONS[name], abs=0.01)
        size, sizes = IMAGE_SIZE_AND_ANCHORS.get(name, (550, [24, 48, 96, 192, 384]))
        assert cfg.INPUT.IMAGE_SIZE == size
        assert [level[0] for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES] == sizes
        thirds = range(3) if "plus" in name else range(1)
        for level, smallest in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, sizes):
            assert level == [smallest * 2 ** (i / 3) for i in thirds]
        true_ratios = "plus" in name or "pascal" in name
        assert cfg.MODEL.ANCHOR_GENERATOR.SQUARE == (not true_ratios)


# The rows of the training recipes of the papers and of the authors' code.
YOLACT_RECIPE = {
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0005,
    "SOLVER.WEIGHT_DECAY_BIAS": None,  # the same as the others
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.REFERENCE_WORLD_SIZE": 1,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (280000, 600000, 700000, 750000),
    "SOLVER.MAX_ITER": 800000,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_FACTOR": 0.1,
    "SOLVER.WARMUP_ITERS": 500,
    "MODEL.PIXEL_MEAN": [123.68, 116.78, 103.94],
    "MODEL.PIXEL_STD": [58.40, 57.12, 57.38],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.BACKBONE.FREEZE_BN_BELOW": 6,
    "MODEL.YOLACT.CROWD_OVERLAP_THRESH": 0.7,
    "MODEL.YOLACT.MAX_MASK_POSITIVES": 100,
    "MODEL.YOLACT.MASK_IOU.MIN_AREA": 25,
    "MODEL.YOLACT.NUM_CLASSES": 80,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0, 0.5, 2.0]],
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
EMBEDMASK_RECIPE = {
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0001,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_METHOD": "constant",
    "SOLVER.WARMUP_FACTOR": 1 / 3,
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.AMP.ENABLED": False,
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0] * 3,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.ENABLED": False,
    "INPUT.MIN_BOX_SIZE": 0.0,
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.EMBEDMASK.NUM_CLASSES": 80,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
RECIPES = dict.fromkeys(MILLIONS, YOLACT_RECIPE) | {
    "embedmask_R_50_FPN_1x": EMBEDMASK_RECIPE,
    "embedmask_R_101_FPN_ms_3x": EMBEDMASK_RECIPE,
}
DIFFERENCES = {
    "yolact_R_101_FPN_700": {"MODEL.YOLACT.MAX_MASK_POSITIVES": 300},
    "yolact_darknet53_FPN_550": {"MODEL.PIXEL_MEAN": [0.0] * 3, "MODEL.PIXEL_STD": [255.0] * 3},
    "yolact_R_50_FPN_550_pascal": {
        "MODEL.YOLACT.NUM_CLASSES": 20,
        "SOLVER.STEPS": (60000, 100000),
        "SOLVER.MAX_ITER": 120000,
    },
    "embedmask_R_50_FPN_1x": {
        "SOLVER.STEPS": (60000, 80000),
        "SOLVER.MAX_ITER": 90000,
        "INPUT.MIN_SIZE_TRAIN": (800,),
    },
    "embedmask_R_101_FPN_ms_3x": {
        "SOLVER.STEPS": (210000, 250000),
        "SOLVER.MAX_ITER": 270000,
        "INPUT.MIN_SIZE_TRAIN": (640, 800),
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    cfg = load_config(os.path.join(os.path.dirname(CONFIGS[0]), f"{name}.yaml"))
    for key, value in {**RECIPES[name], **DIFFERENCES.get(name, {})}.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key


def test_embedmask_biases_learn_twice_as_fast_and_do_not_decay():
    """Those of group norm, too; its weights decay."""
    cfg = load_config("embedmask_R_50_FPN_1x", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    groups = Trainer.build_optimizer(cfg, model).param_groups
    found = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = (0.02, 0.0) if name.endswith(".bias") else (0.01, 0.0001)
            assert found.pop(parameter) == expected, name
    assert not found


def test_adds_nothing_to_a_config_that_is_not_asked_for():
    before = get_cfg()
    cfg = get_cfg()
    add_yolact_config(cfg)
    for key in ("INPUT.MIN_SIZE_TEST", "MODEL.META_ARCHITECTURE", "SOLVER.BASE_LR"):
        section, leaf = key.split(".")
        assert cfg[section][leaf] == before[section][leaf]


SHAPES, PLUS, DARKNET = "yolact_shapes", "yolact_plus_shapes", "yolact_darknet53_FPN_550"
WRONG_VALUES = [
    # The pattern is of the error, if there is more to find in it than the key.
    (SHAPES, "MODEL.BACKBONE.NAME", "x", "NAME is 'x'.*: .*build_yolact_darknet53_fpn_backbone"),
    (SHAPES, "MODEL.ANCHOR_GENERATOR.NAME", "x", "GENERATOR.NAME is 'x'.*YOLACTAnchorGenerator"),
    (SHAPES, "MODEL.YOLACT.NMS", "x", "NMS is 'x'.*: batched_nms, cross_class_fast_nms, fast_nms"),
    (SHAPES, "MODEL.YOLACT.PROTONET.NAME", "x", "PROTONET.NAME is 'x'.*one of: .*Protonet"),
    (SHAPES, "MODEL.YOLACT.NUM_CLASSES", 0, None),
    (SHAPES, "MODEL.YOLACT.PROTONET.NUM_PROTOTYPES", 0, None),
    (SHAPES, "MODEL.YOLACT.IN_FEATURES", ["p2", "p3"], r"no level \['p2'\].*'p3', 'p4'"),
    (SHAPES, "MODEL.YOLACT.MASK_IOU.ENABLED", True, "MASK_IOU.CONV_DIMS: 5 .*INPUT.IMAGE_SIZE"),
    (SHAPES, "MODEL.MASK_ON", False, None),
    (SHAPES, "MODEL.ANCHOR_GENERATOR.SIZES", [[9]] * 4 + [[9, 8]], r"got \[3, 3, 3, 3, 6\]"),
    (SHAPES, "TEST.AUG.ENABLED", True, "TEST.AUG.ENABLED is True.* set it to False"),
    (PLUS, "MODEL.RESNETS.DEFORM_MODULATED", False, "set MODEL.RESNETS.DEFORM_MODULATED to True"),
    (PLUS, "MODEL.RESNETS.DEFORM_INTERVAL", 0, "DEFORM_INTERVAL is 0"),
    (PLUS, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True], None),
    (PLUS, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"], "MODEL.RESNETS.DEFORM_ON_PER_STAGE"),
    (DARKNET, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True], None),
    (DARKNET, "MODEL.DARKNET.OUT_FEATURES", ["dark6"], None),
    (DARKNET, "MODEL.FPN.IN_FEATURES", ["res3"], r"FPN.IN_FEATURES: no stage \['res3'\].*'dark3'"),
]


@pytest.mark.parametrize("name, key, value, pattern", WRONG_VALUES)
def test_models_that_cannot_be_built_name_the_key(name, key, value, pattern):
    cfg = load_config(name, ["MODEL.DEVICE", "cpu", key, value])
    with pytest.raises(ValueError, match=pattern or key):
        build_model(cfg)


def test_a_gpu_that_is_missing_is_replaced_but_not_in_a_config_to_save(monkeypatch, caplog):
    for available, device in ((True, "cuda:1"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert load_config(CONFIGS[0], ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == device
        cfg = load_config(CONFIGS[0], ["MODEL.DEVICE", "cuda:1"], keep_device=True)
        assert cfg.MODEL.DEVICE == "cuda:1"
    assert [record.getMessage() for record in caplog.records] == [
        "MODEL.DEVICE is cuda:1, but no GPU is found: running on the CPU."
    ]


def test_missing_config_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_config("nowhere.yaml")


@pytest.fixture
def write(tmp_path):
    def write(text, name="some.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_python_in_a_config_is_never_executed(write, tmp_path):
    mark = tmp_path / "mark"
    for value in (
        f"!!python/object/apply:os.mkdir [{mark}]",
        f"!!python/object/new:os.mkdir [{mark}]",
        "!!python/name:os.mkdir",
        "!!python/tuple [1, 2]",
    ):
        path = write(f"MODEL:\n  WEIGHTS: {value}\n")
        based_on_it = write("_BASE_: some.yaml\n", "other.yaml")
        for config in (path, based_on_it):
            with pytest.raises(ValueError, match="python/") as error:
                load_config(config)
            assert path in str(error.value)
            assert not mark.exists()
    # So that the assertions above can fail.
    get_cfg().merge_from_file(
        write(f"MODEL: {{WEIGHTS: !!python/object/apply:os.mkdir [{mark}]}}\n")
    )
    assert mark.exists()


def test_python_is_executed_in_detectron2s_own_configs_alone(tmp_path):
    path = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    sizes = load_config(path).MODEL.ANCHOR_GENERATOR.SIZES
    assert sizes == [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    copy = shutil.copy(path, tmp_path / "copy.yaml")
    shutil.copy(os.path.join(os.path.dirname(path), "../Base-RetinaNet.yaml"), tmp_path.parent)
    (tmp_path / "other.yaml").write_text(f"_BASE_: {path}\n")
    for config in (copy, tmp_path / "other.yaml"):
        with pytest.raises(ValueError, match="python/object/apply:eval"):
            load_config(str(config))


def test_saved_config_is_read_again(write):
    """As training saves it: tuples become lists."""
    cfg = load_config(CONFIGS[0], ["SOLVER.STEPS", (3, 5), "DATASETS.TEST", ("a", "b")])
    cfg.MODEL.YOLACT.CLASS_NAMES = ["a", "b"]
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = ()  # tuples of tuples of Detectron2's
    assert load_config(write(cfg.dump())) == cfg


def test_files_that_are_no_config_are_named(write):
    for text in ("_BASE_: some.yaml\n", "[1, 2]", "some text", "MODEL: ["):
        with pytest.raises(ValueError) as error:
            load_config(write(text))
        assert "some.yaml" in str(error.value), text
