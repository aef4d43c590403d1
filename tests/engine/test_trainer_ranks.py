"""The trainer in two processes."""

import os

import pytest
import torch
from detectron2.utils import comm
from plain import assert_equal
from ranks import assert_success, run_ranks

from yolact_d2.engine import Trainer
from yolact_d2.modeling.yolact.criterion import YOLACTCriterion

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NUM_STEPS = 5


@pytest.fixture
def cfg(training_cfg, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    training_cfg.merge_from_list(
        ["SOLVER.MAX_ITER", 2 * NUM_STEPS, "SOLVER.MAX_SKIPPED", 2, "OUTPUT_DIR", str(output)]
    )
    return training_cfg


def train(cfg, record, nan_on_rank=None, nan_steps=(), stop_after=None):
    """Train in this process, one of two, and store what it saw and its model in a file."""
    real, steps = YOLACTCriterion.forward, []

    def forward(self, *args):
        steps.append(None)
        losses = real(self, *args)
        if comm.get_rank() == nan_on_rank and len(steps) - 1 in nan_steps:
            losses["loss_mask"] = losses["loss_mask"] * float("nan")
        return losses

    YOLACTCriterion.forward = forward
    torch.manual_seed(len(os.listdir(cfg.OUTPUT_DIR)))  # Only the first start may depend on it.
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    if stop_after is not None:
        trainer.max_iter = stop_after + 1
    names, statistics = [], {}

    def recorded(loader):
        for batch in loader:
            names.append([x["file_name"] for x in batch])
            state = trainer.model.module.state_dict()
            statistics.update({k: v.clone() for k, v in state.items() if "running_" in k})
            yield batch

    trainer.data_loader = recorded(trainer.data_loader)
    error = None
    try:
        trainer.train()
    except FloatingPointError as caught:
        error = str(caught)
    torch.save(
        {
            "statistics before the last step": statistics,
            "model": trainer.model.module.state_dict(),
            "names": names,
            "error": error,
            "num_skipped": trainer._trainer.num_skipped,
        },
        f"{record}.{comm.get_rank()}",
    )


def run(cfg, tmp_path, *args, name="run"):
    """:func:`train` in two processes; what each of them stored."""
    (tmp_path / name).mkdir()
    record = tmp_path / name / "record"
    assert_success(run_ranks(tmp_path / name, train, cfg, str(record), *args))
    return [torch.load(f"{record}.{rank}", weights_only=True) for rank in (0, 1)]


def parameters(record):
    return {k: v for k, v in record["model"].items() if "running_" not in k and "num_b" not in k}


def test_both_see_other_images_and_resuming_is_exact(cfg, tmp_path):
    whole = run(cfg, tmp_path)
    first, second = whole
    assert_equal(parameters(first), parameters(second))
    # Each has statistics of its own images, until both evaluate with those of rank 0.
    statistics = [record["statistics before the last step"].values() for record in whole]
    assert all((a != b).any() for a, b in zip(*statistics))
    assert_equal(first["model"], second["model"])
    # Together they see each of the 7 images once an epoch.
    stream = [
        name
        for batches in zip(first["names"], second["names"])
        for pair in zip(*batches)
        for name in pair
    ]
    assert len(stream) == 2 * 2 * NUM_STEPS
    assert len(set(stream[:7])) == 7 and len(set(stream[7:14])) == 7

    for name in os.listdir(cfg.OUTPUT_DIR):
        os.remove(os.path.join(cfg.OUTPUT_DIR, name))
    run(cfg, tmp_path, None, (), 2, name="stopped")
    for a, b in zip(whole, run(cfg, tmp_path, name="resumed")):
        assert_equal(parameters(a), parameters(b))
        assert a["names"][3:] == b["names"]


def test_both_skip_a_batch_with_non_finite_losses_on_one(cfg, tmp_path):
    first, second = run(cfg, tmp_path, 0, (1, 3))
    assert first["num_skipped"] == second["num_skipped"] == 2
    assert first["error"] is second["error"] is None
    assert_equal(parameters(first), parameters(second))
    assert all(v.isfinite().all() for v in first["model"].values())


def test_too_many_skipped_stop_both_and_name_the_images_of_the_one(cfg, tmp_path):
    first, second = run(cfg, tmp_path, 1, (1, 2))
    assert first["error"] == second["error"]
    named = set(sum(second["names"][1:3], []))
    others = set(sum(first["names"][1:3], [])) - named
    assert others and all(name in first["error"] for name in named)
    assert not any(name in first["error"] for name in others)
    assert_equal(parameters(first), parameters(second))
