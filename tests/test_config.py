import glob
import os

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from yolact_d2 import add_yolact_config, load_config

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
    cfg = load_config(path, ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    assert type(model).__name__ == "YOLACT"
    name = name_of(path)
    if name in MILLIONS:
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        assert parameters == pytest.approx(MILLIONS[name], abs=0.01)
        size, sizes = IMAGE_SIZE_AND_ANCHORS.get(name, (550, [24, 48, 96, 192, 384]))
        assert cfg.INPUT.IMAGE_SIZE == size
        assert [level[0] for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES] == sizes
        assert cfg.MODEL.ANCHOR_GENERATOR.SQUARE == (name != "yolact_R_50_FPN_550_pascal")


def test_known_configs_are_all_there():
    assert {name_of(path) for path in CONFIGS} >= {*MILLIONS, "yolact_shapes"}


def test_adds_nothing_to_a_config_that_is_not_asked_for():
    before = get_cfg()
    cfg = get_cfg()
    add_yolact_config(cfg)
    for key in ("INPUT.MIN_SIZE_TEST", "MODEL.META_ARCHITECTURE", "SOLVER.BASE_LR"):
        section, leaf = key.split(".")
        assert cfg[section][leaf] == before[section][leaf]


@pytest.mark.parametrize(
    "key, known",
    [
        ("MODEL.YOLACT.NMS", "batched_nms, cross_class_fast_nms, fast_nms"),
        ("MODEL.YOLACT.PROTONET.NAME", "Protonet"),
    ],
)
def test_unknown_variant_is_named_with_the_known_ones(shapes_cfg, key, known):
    shapes_cfg.merge_from_list([key, "nothing"])
    with pytest.raises(ValueError, match=f"{key} is 'nothing'.*{known}"):
        build_model(shapes_cfg)


def test_unknown_level_is_named_with_the_known_ones(shapes_cfg):
    shapes_cfg.merge_from_list(["MODEL.YOLACT.IN_FEATURES", ["p2", "p3"]])
    with pytest.raises(ValueError, match=r"IN_FEATURES: no level \['p2'\].*'p3', 'p4'"):
        build_model(shapes_cfg)


def test_missing_config_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_config("nowhere.yaml")
