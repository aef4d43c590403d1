import os

import pytest
import torch
from detectron2 import model_zoo
from plain import CONFIGS

from yolact_d2.benchmark.specs import find_config, parse_model, parse_models

ZOO_NAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
SHAPES = str(CONFIGS / "yolact_shapes.yaml")


def test_a_name_in_the_model_zoo_and_a_path():
    assert find_config(ZOO_NAME) == model_zoo.get_config_file(ZOO_NAME)
    assert find_config(SHAPES) == SHAPES


def test_a_plain_config():
    spec = parse_model(SHAPES)
    assert spec.label == "yolact_shapes" and spec.config_file == SHAPES
    assert spec.opts == () and spec.random


def test_the_size_can_be_changed():
    spec = parse_model(f"{ZOO_NAME}:INPUT.MIN_SIZE_TEST=550,INPUT.MAX_SIZE_TEST=917")
    assert spec.label == "mask_rcnn_R_50_FPN_3x MIN_SIZE_TEST=550 MAX_SIZE_TEST=917"
    cfg = spec.load()
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (550, 917)
    assert parse_model(ZOO_NAME).load().INPUT.MIN_SIZE_TEST == 800


def test_label_and_values_with_commas():
    spec = parse_model(f"small={ZOO_NAME}:INPUT.MIN_SIZE_TRAIN=(96, 128),TEST.EVAL_PERIOD=7")
    assert spec.label == "small"
    cfg = spec.load()
    assert cfg.INPUT.MIN_SIZE_TRAIN == (96, 128) and cfg.TEST.EVAL_PERIOD == 7


def test_overrides_of_a_model_come_after_those_of_all():
    opts = ["INPUT.MIN_SIZE_TEST", "300", "TEST.EVAL_PERIOD", "3"]
    cfg = parse_model(f"{ZOO_NAME}:INPUT.MIN_SIZE_TEST=550", opts).load()
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.EVAL_PERIOD) == (550, 3)


def test_weights_are_random_unless_asked_for(tmp_path):
    weights = tmp_path / "model.pth"
    weights.touch()
    assert parse_model(ZOO_NAME).load().MODEL.WEIGHTS == ""
    assert parse_model(ZOO_NAME, weights="random").random
    for spec in (
        parse_model(ZOO_NAME, weights=str(weights)),
        parse_model(f"{ZOO_NAME}:MODEL.WEIGHTS={weights}"),
        parse_model(ZOO_NAME, ["MODEL.WEIGHTS", str(weights)]),
    ):
        assert not spec.random and spec.load().MODEL.WEIGHTS == str(weights)
    assert parse_model(ZOO_NAME, ["MODEL.WEIGHTS", str(weights)], "random").random
    url = "detectron2://COCO-InstanceSegmentation/x/model_final.pkl"
    assert parse_model(ZOO_NAME, weights=url).weights == url


def test_device_of_all_models():
    specs = parse_models([SHAPES, ZOO_NAME], device="cpu")
    assert [spec.load().MODEL.DEVICE for spec in specs] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("nowhere/some.yaml", "no config file 'nowhere/some.yaml'.*model zoo"),
        (ZOO_NAME.replace("50", "51"), "look like .*mask_rcnn_R_50_FPN_3x.yaml"),
        ("new_baselines/mask_rcnn_R_50_FPN_50ep_LSJ.py", "is no YAML config"),
        (f"{SHAPES}:INPUT.IMAGE_SIZ=96", "yolact_shapes IMAGE_SIZ=96: .*INPUT.IMAGE_SIZ"),
        (f"{SHAPES}:INPUT.IMAGE_SIZE", "'INPUT.IMAGE_SIZE' should be KEY=VALUE"),
        (f"{SHAPES}:INPUT.IMAGE_SIZE=large", "IMAGE_SIZE"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "is ProposalNetwork; .*YOLACT, GeneralizedRCNN"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "needs precomputed proposals"),
    ],
)
def test_wrong_models_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_model(text)


def test_missing_weights_are_named():
    path = os.path.join("nowhere", "model.pth")
    with pytest.raises(ValueError, match="yolact_shapes: there is no weights file 'nowhere"):
        parse_model(SHAPES, weights=path)


def test_each_config_needs_its_weights():
    with pytest.raises(ValueError, match="1 weights for 2 configs"):
        parse_models([SHAPES, ZOO_NAME], ["random"])


def test_equal_labels():
    with pytest.raises(ValueError, match="two models are called 'yolact_shapes'.*LABEL=CONFIG"):
        parse_models([SHAPES, SHAPES])
    assert len(parse_models([SHAPES, f"again={SHAPES}"])) == 2


def test_devices_that_do_not_exist(monkeypatch):
    with pytest.raises(ValueError, match="'gpu' should be"):
        parse_models([SHAPES], device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1': torch finds no GPU"):
        parse_models([SHAPES], device="cuda:1")
