"""Training that is stopped and goes on."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from plain import assert_equal

from yolact_d2.data import YOLACTDatasetMapper
from yolact_d2.data import read_image as real_read_image
from yolact_d2.engine import Trainer
from yolact_d2.modeling.criterion import YOLACTCriterion


@pytest.fixture
def cfg(training_cfg):
    # A learning rate that moves.
    training_cfg.merge_from_list(["SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 4])
    return training_cfg


def train(cfg, folder, num_workers=0, stop_after=None):
    """Train, or go on; die after an iteration. Returns the losses by iteration."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    # The first start decides the weights; that of a later one must not matter.
    torch.manual_seed(len(os.listdir(folder)))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    losses = {}

    class Record(type(trainer._trainer)):
        def _write_metrics(self, loss_dict, data_time):
            losses[self.iter] = {k: v.item() for k, v in loss_dict.items()}
            super()._write_metrics(loss_dict, data_time)

    trainer._trainer.__class__ = Record
    if stop_after is not None:
        trainer.max_iter = stop_after + 1
    trainer.train()
    return losses


@pytest.fixture
def never_stopped(cfg, tmp_path):
    folder = tmp_path / "whole"
    folder.mkdir()
    return train(cfg, folder), torch.load(folder / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("stops, num_workers", [([2], 0), ([0, 3], 2)])
def test_resumed_training_is_the_same_to_the_bit(cfg, tmp_path, never_stopped, stops, num_workers):
    folder = tmp_path / "stopped"
    folder.mkdir()
    losses = {}
    for stop in (*stops, None):
        losses.update(train(cfg, folder, num_workers, stop))
    expected_losses, expected = never_stopped
    assert losses == expected_losses
    got = torch.load(folder / "model_final.pth", weights_only=True)
    assert_equal(got, expected)


def test_each_step_differs(never_stopped):
    losses, _ = never_stopped
    assert len(losses) == 6
    assert len({loss["loss_mask"] for loss in losses.values()}) == 6


def test_a_batch_that_is_not_finite_is_counted_in_the_metrics(cfg, tmp_path, monkeypatch):
    real, calls = YOLACTCriterion.forward, []

    def forward(self, *args):
        calls.append(None)
        losses = real(self, *args)
        return {**losses, "loss_cls": losses["loss_cls"] * (torch.nan if len(calls) == 2 else 1)}

    monkeypatch.setattr(YOLACTCriterion, "forward", forward)
    train(cfg, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["num_skipped_batches"] for line in lines if "num_skipped_batches" in line] == [1]
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert all(v.isfinite().all() for v in final["model"].values() if v.is_floating_point())
    assert final["trainer"]["_trainer"]["num_skipped"] == 1


def test_too_many_of_them_name_the_images_and_the_checkpoint(cfg, tmp_path, monkeypatch):
    cfg.SOLVER.MAX_SKIPPED = 2
    train(cfg, tmp_path, stop_after=1)
    monkeypatch.setattr(
        YOLACTCriterion, "forward", lambda *args: {"loss_cls": torch.tensor(torch.inf)}
    )
    with pytest.raises(FloatingPointError) as caught:
        train(cfg, tmp_path)
    message = str(caught.value)
    assert message.count(".png") == 4
    assert str(tmp_path / "model_final.pth") in message  # of the first part


@pytest.fixture(params=["yolact_shapes", "yolact_plus_shapes"])
def nan_cfg(request, cfg, plus_shapes_cfg):
    """Of both models."""
    if request.param == "yolact_shapes":
        return cfg
    plus = plus_shapes_cfg
    for key in ("DATASETS", "SOLVER", "INPUT", "DATALOADER"):
        plus[key] = cfg[key]
    plus.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [8, 16]
    return plus


def pixels(value):
    """A mapper that spoils one of the pictures."""

    def read_image(path, format):
        image = real_read_image(path, format)
        if path.endswith("000002.png"):
            image = np.where(np.arange(image.shape[1])[:, None] > 20, value, image)
        return image

    return read_image


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pictures_that_are_not_finite_are_skipped(nan_cfg, tmp_path, monkeypatch, caplog, value):
    monkeypatch.setattr("yolact_d2.data.dataset_mapper.read_image", pixels(value))
    nan_cfg.INPUT.AUG.PHOTOMETRIC = nan_cfg.INPUT.AUG.CROP = False
    losses = train(nan_cfg, tmp_path)
    skipped = [r.getMessage() for r in caplog.records if "Batch skipped" in r.getMessage()]
    assert 0 < len(skipped) == 6 - len(losses) < 6
    assert all("000002.png" in message for message in skipped)
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert all(v.isfinite().all() for v in final["model"].values() if v.is_floating_point())


def test_weights_that_are_not_finite_end_training(nan_cfg, tmp_path):
    nan_cfg.SOLVER.MAX_SKIPPED = 2
    nan_cfg.OUTPUT_DIR = str(tmp_path)
    trainer = Trainer(nan_cfg)
    with torch.no_grad():
        trainer.model.backbone.bottom_up.stem.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="2 batches in a row"):
        trainer.train()


class Stock(Trainer):
    """With a loader of Detectron2, as a project of one's own may have it."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=YOLACTDatasetMapper(cfg))


def test_another_loader_can_be_used(cfg, tmp_path, caplog):
    cfg.OUTPUT_DIR = str(tmp_path)
    for max_iter, num_warnings in ((1, 0), (2, 1)):
        cfg.SOLVER.MAX_ITER = max_iter
        trainer = Stock(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        warnings = [r for r in caplog.records if "starts from its beginning" in r.getMessage()]
        assert len(warnings) == num_warnings
    assert trainer.start_iter == 1
