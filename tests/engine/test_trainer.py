"""Training that is stopped and resumed, and images or losses that are not finite."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from plain import assert_equal

from yolact_d2.data import read_image as real_read_image
from yolact_d2.engine import Trainer

# With a learning rate that changes.
SCHEDULE = ["SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 4]


@pytest.fixture
def cfg(training_cfg):
    training_cfg.merge_from_list(SCHEDULE)
    return training_cfg


@pytest.fixture
def embedmask_cfg(embedmask_training_cfg):
    embedmask_training_cfg.merge_from_list(SCHEDULE)
    return embedmask_training_cfg


@pytest.fixture
def averaged_cfg(embedmask_cfg):
    embedmask_cfg.merge_from_list(
        "SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 0.001 SOLVER.EMA.ENABLED True SOLVER.EMA.DECAY 0.5 "
        "SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE bfloat16".split()
    )
    return embedmask_cfg


def train(cfg, folder, num_workers=0, stop_after=None, resume=True):
    """Train or resume, until an iteration. Returns the losses by iteration."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    # Only the first start may depend on the global seed.
    torch.manual_seed(len(os.listdir(folder)))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
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


def final_checkpoint(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cfg", "embedmask_cfg", "averaged_cfg"])
def test_resumed_training_is_the_same_to_the_bit(model, request, tmp_path):
    cfg = request.getfixturevalue(model)
    runs = {"whole": ([], 0), "stopped": ([2], 0), "stopped twice": ([0, 3], 2)}
    results = {}
    for name, (stops, num_workers) in runs.items():
        folder, losses = tmp_path / name, {}
        folder.mkdir()
        half_written = folder / ".0123abcd.partial.model_0000005.pth"  # by a killed process
        half_written.touch()
        for stop in (*stops, None):
            losses.update(train(cfg, folder, num_workers, stop))
        results[name] = losses, final_checkpoint(folder)
        assert not half_written.exists()
    losses = results["whole"][0].values()
    assert len(losses) == len({loss["loss_mask"] for loss in losses}) == 6
    assert_equal(results["stopped"], results["whole"])
    assert_equal(results["stopped twice"], results["whole"])


def test_the_averaged_weights_are_evaluated_and_saved(averaged_cfg, tmp_path, monkeypatch):
    evaluated = []
    test = classmethod(lambda cls, cfg, model: evaluated.append(copy.deepcopy(model.state_dict())))
    monkeypatch.setattr(Trainer, "test", test)
    train(averaged_cfg, tmp_path)
    checkpoint = final_checkpoint(tmp_path)
    assert_equal(dict(evaluated[0]), dict(checkpoint["model"]))
    name = "head.cls_score.weight"
    trained = checkpoint["trainer"]["_trainer"]["trained_model"][name]
    assert not torch.equal(trained, checkpoint["model"][name])

    # Another run can start from it, with or without averaging.
    averaged_cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    for averaged_cfg.SOLVER.EMA.ENABLED in (True, False):
        averaged_cfg.OUTPUT_DIR = str(tmp_path / f"next {averaged_cfg.SOLVER.EMA.ENABLED}")
        trainer = Trainer(averaged_cfg)
        trainer.resume_or_load(resume=False)
        for model in trainer.model, trainer._trainer.model:
            assert_equal(dict(model.state_dict()), dict(checkpoint["model"]))


def test_wrong_keys_of_the_solver_are_refused(cfg):
    for key, value in ("AMP.DTYPE", "float32"), ("OPTIMIZER", "Adam"):
        wrong = cfg.clone()
        wrong.merge_from_list([f"SOLVER.{key}", value])
        with pytest.raises(ValueError, match=f"SOLVER.{key} is '{value}', not one of"):
            Trainer(wrong)


@pytest.fixture
def plus_cfg(cfg, plus_shapes_cfg):
    for key in ("DATASETS", "SOLVER", "INPUT", "DATALOADER"):
        plus_shapes_cfg[key] = cfg[key]
    plus_shapes_cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [8, 16]
    return plus_shapes_cfg


@pytest.mark.parametrize("model", ["plus_cfg", "embedmask_cfg"])
def test_images_with_non_finite_pixels_are_skipped_and_counted(
    model, request, tmp_path, monkeypatch, caplog
):
    cfg = request.getfixturevalue(model)

    def read_image(path, format):
        image = real_read_image(path, format)
        if path.endswith("000002.png"):
            image = np.where(np.arange(image.shape[1])[:, None] > 20, np.nan, image)
        return image

    monkeypatch.setattr("yolact_d2.data.dataset_mapper.read_image", read_image)
    cfg.INPUT.AUG.PHOTOMETRIC = cfg.INPUT.AUG.CROP = False
    losses = train(cfg, tmp_path)
    skipped = [r.getMessage() for r in caplog.records if "Batch skipped" in r.getMessage()]
    assert 0 < len(skipped) == 6 - len(losses) < 6
    assert all("000002.png" in message for message in skipped)
    final = final_checkpoint(tmp_path)
    assert all(v.isfinite().all() for v in final["model"].values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    counts = [line["num_skipped_batches"] for line in lines if "num_skipped_batches" in line]
    assert counts == [final["trainer"]["_trainer"]["num_skipped"]] == [len(skipped)]


def test_non_finite_weights_stop_training(plus_cfg, tmp_path):
    plus_cfg.SOLVER.MAX_SKIPPED = 2
    plus_cfg.OUTPUT_DIR = str(tmp_path)
    for last in ("none", f"{tmp_path}/model_0000000.pth"):
        trainer = Trainer(plus_cfg)
        with torch.no_grad():
            trainer.model.backbone.bottom_up.stem.conv1.weight[0, 0, 0, 0] = torch.nan
        message = f"2 batches in a row.* The last checkpoint: {last}$"
        with pytest.raises(FloatingPointError, match=message):
            trainer.train()
        trainer.checkpointer.save("model_0000000")


def iterations(path):
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def test_metrics_of_an_earlier_run_are_kept_aside_unless_it_is_resumed(cfg, tmp_path, caplog):
    names = ["metrics.json", "metrics.1.json", "metrics.2.json"]
    for max_iter, resume in ((1, False), (2, False), (3, True), (4, False)):
        cfg.SOLVER.MAX_ITER = max_iter
        train(cfg, tmp_path, resume=resume)
    assert [iterations(tmp_path / name) for name in names] == [[3], [0], [1, 2]]
    assert sorted(path.name for path in tmp_path.glob("metrics*")) == sorted(names)
    said = [r.getMessage() for r in caplog.records if "earlier run" in r.getMessage()]
    assert len(said) == 2 and f"{tmp_path} has" in said[0] and "now metrics.2.json" in said[1]


def test_frozen_batch_norm_is_logged_once_with_its_key(cfg, tmp_path, caplog):
    cfg.OUTPUT_DIR = str(tmp_path)
    for limit in (0, 2, 3):
        cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = limit
        Trainer(cfg)
    (said,) = [r.getMessage() for r in caplog.records if "Batch norm is frozen" in r.getMessage()]
    assert "has 2 images a step, and MODEL.BACKBONE.FREEZE_BN_BELOW is 3" in said


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
def test_nothing_is_scaled_below_1(cfg, num_workers):
    cfg.merge_from_list(
        "SOLVER.REFERENCE_WORLD_SIZE 1 SOLVER.MAX_ITER 5 SOLVER.STEPS (1,2,4) "
        "SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR "
        "SOLVER.WARMUP_ITERS 1 SOLVER.CHECKPOINT_PERIOD 1 TEST.EVAL_PERIOD 1".split()
    )
    scaled = Trainer.auto_scale_workers(cfg, num_workers)
    solver = scaled.SOLVER
    # MAX_ITER, STEPS
    expected = {1: (5, (1, 2, 4)), 2: (2, (1,)), 3: (2, (1,)), 8: (1, ())}
    assert (solver.MAX_ITER, solver.STEPS) == expected[num_workers]
    assert solver.WARMUP_ITERS == solver.CHECKPOINT_PERIOD == scaled.TEST.EVAL_PERIOD == 1
    assert solver.IMS_PER_BATCH == 2 * num_workers and solver.BASE_LR == 0.03 * num_workers
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=solver.BASE_LR)
    Trainer.build_lr_scheduler(scaled, optimizer)
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0])
    scaled = Trainer.auto_scale_workers(cfg, num_workers)
    assert scaled.SOLVER.WARMUP_ITERS == scaled.TEST.EVAL_PERIOD == 0


@pytest.mark.parametrize("key", ["SOLVER.CHECKPOINT_PERIOD", "SOLVER.MAX_ITER"])
def test_periods_of_0_are_refused(cfg, key):
    cfg.merge_from_list([key, 0])
    with pytest.raises(ValueError, match=f"{key} is 0, not 1 or more"):
        Trainer(cfg)
