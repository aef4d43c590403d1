import pytest
import torch
from detectron2.engine import DefaultPredictor
from small_models import BENCHMARK_MODELS

from tools.benchmark import variants
from tools.benchmark.architectures import _yolact_calls
from tools.benchmark.images import generate_image
from tools.benchmark.models import Detector, parse_model

ZOO_NAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
SIZES = [(60, 90), (80, 64)]
IMAGES = [generate_image(*size, seed=i) for i, size in enumerate(SIZES)]


def detector_of(name, *opts, variant="float32"):
    return Detector(parse_model([*BENCHMARK_MODELS[name], *opts], "cpu"), variant)


def test_random_weights_lower_the_score_threshold(tmp_path):
    cfg = parse_model(["a", ZOO_NAME, "INPUT.MIN_SIZE_TEST", "550"], "cpu").load_cfg()
    assert cfg.INPUT.MIN_SIZE_TEST == 550 and cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.WEIGHTS == "" and cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0
    weights = tmp_path / "model.pth"
    weights.touch()
    cfg = parse_model(["a", ZOO_NAME, "MODEL.WEIGHTS", str(weights)], "cpu").load_cfg()
    assert cfg.MODEL.WEIGHTS == str(weights) and cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05


def test_wrong_models_are_named():
    for words, message in [
        (["a"], r"LABEL CONFIG \[KEY VALUE ...\], not 'a'"),
        (["a", ZOO_NAME, "KEY"], "not 'a COCO-Inst.* KEY'"),
        (["a", "nowhere.yaml"], "a: there is no config file and no model 'nowhere.yaml'"),
        (["a", ZOO_NAME, "NO.KEY", "1"], "a: .*NO.KEY"),
        (["a", ZOO_NAME, "MODEL.WEIGHTS", "no.pth"], "a: .*'no.pth'"),
        (["a", "COCO-Detection/rpn_R_50_FPN_1x"], "is ProposalNetwork; the benchmark knows YOL"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_model(words)


@pytest.mark.parametrize("name", BENCHMARK_MODELS)
def test_stages_and_detections_of_random_weights(name):
    detector = detector_of(name)
    attributes = dict(vars(detector.model))
    has_masks = name not in ("faster_rcnn", "retinanet")
    for instances, size in zip(detector(IMAGES), SIZES):
        assert len(instances) == 7 and instances.image_size == size
        assert instances.pred_boxes.tensor.isfinite().all()
        assert instances.has("pred_masks") == has_masks

    # A clock that ticks whenever it is read.
    ticks = iter(range(10**6))
    stages = detector.time_stages(IMAGES[:1], lambda: float(next(ticks)))
    expected = {"preprocess", "backbone", "heads", "nms"} | ({"masks"} if has_masks else set())
    assert stages.keys() == expected and min(stages.values()) > 0
    # All but the tick from the resize to the call of the model.
    assert sum(stages.values()) == next(ticks) - 2
    assert stages["nms"] == (2 if "rcnn" in name or name == "cascade" else 1)
    assert vars(detector.model) == attributes


def test_detectors_load_weights(tmp_path):
    for name in ("yolact", "mask_rcnn"):
        model = detector_of(name).model
        torch.nn.init.constant_(model.backbone.fpn_lateral3.bias, 0.5)
        weights = tmp_path / f"{name}.pth"
        torch.save({"model": model.state_dict()}, weights)
        detector = detector_of(name, "MODEL.WEIGHTS", str(weights))
        for key, value in model.state_dict().items():
            assert torch.equal(value, detector.model.state_dict()[key]), key


def test_preprocessing_equals_the_predictors():
    detector = detector_of("mask_rcnn")
    predictor, seen = DefaultPredictor(detector.cfg), []
    predictor.model = lambda batch: seen.extend(batch) or [None]
    predictor(IMAGES[0])
    (inputs,) = detector.preprocess(IMAGES[:1])
    assert torch.equal(inputs.pop("image"), seen[0].pop("image"))
    assert inputs == seen[0] == {"height": 60, "width": 90}


def test_variants_return_as_many_detections():
    for name, variant in [
        ("yolact", "channels-last+optimized"),
        ("yolact", "amp"),
        ("retinanet", "amp+channels-last"),
    ]:
        detector = detector_of(name, variant=variant)
        assert detector.label == f"{name}, {variant}"
        assert [len(instances) for instances in detector(IMAGES)] == [7, 7]
    assert not torch.is_autocast_enabled("cpu")


def test_the_stages_of_a_compiled_model_are_around_it():
    model = detector_of("yolact").model
    assert [call.name for call in _yolact_calls(model)].count("forward") == 1
    model.detect_batch = lambda images: None  # as optimize_for_inference does on a GPU
    assert {(call.stage, call.name) for call in _yolact_calls(model)} == {
        ("preprocess", "preprocess_image"),
        ("masks", "inference_single_image"),
        ("masks", "batch_instances"),
    }


def test_compile_replaces_the_networks_that_a_model_has(monkeypatch):
    compiled = []
    monkeypatch.setattr(variants, "compile_with_constants", compiled.append)
    detector_of("yolact", variant="compile")
    detector_of("mask_rcnn", variant="compile")
    assert [type(x).__name__ for x in compiled] == [
        "YOLACTFPN", "YOLACTHead", "Protonet", "FPN", "StandardRPNHead"
    ]  # fmt: skip
