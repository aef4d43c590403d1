"""The trainer in two processes."""

import os

import pytest
import torch
from detectron2.utils import comm
from plain import assert_equal
from ranks import assert_success, run_ranks

from yolact_d2.engine import Trainer
from yolact_d2.modeling.criterion import YOLACTCriterion

NUM_STEPS = 5


@pytest.fixture
def cfg(training_cfg, tmp_path):
    training_cfg.merge_from_list(
        ["SOLVER.MAX_ITER", 2 * NUM_STEPS, "SOLVER.MAX_SKIPPED", 2, "OUTPUT_DIR", str(tmp_path)]
    )
    return training_cfg


def train(cfg, record, broken_on_rank=None, broken_steps=(), stop_after=None):
    """Train in this process, one of two; what was seen and what came of it goes to a file."""
    real, steps = YOLACTCriterion.forward, []

    def forward(self, *args):
        steps.append(None)
        losses = real(self, *args)
        if comm.get_rank() == broken_on_rank and len(steps) - 1 in broken_steps:
            losses["loss_mask"] = losses["loss_mask"] * float("nan")
        return losses

    YOLACTCriterion.forward = forward
    torch.manual_seed(len(os.listdir(cfg.OUTPUT_DIR)))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    if stop_after is not None:
        trainer.max_iter = stop_after + 1
    names, statistics = [], {}

    def named(loader):
        for batch in loader:
            names.append([x["file_name"] for x in batch])
            statistics.update(copy_of(trainer.model.module))
            yield batch

    trainer.data_loader = named(trainer.data_loader)
    error = None
    try:
        trainer.train()
    except FloatingPointError as caught:
        error = str(caught)
    torch.save(
        {
            "statistics": statistics,  # before the last step
            "model": trainer.model.module.state_dict(),
            "names": names,
            "error": error,
            "num_skipped": trainer._trainer.num_skipped,
        },
        f"{record}.{comm.get_rank()}",
    )


def copy_of(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}


def run(cfg, folder, *args, name="record"):
    """:func:`train` in two processes; what each of them recorded."""
    record = folder / name
    logs = folder / f"{name}_logs"
    logs.mkdir()
    assert_success(run_ranks(logs, train, cfg, str(record), *args))
    return [torch.load(f"{record}.{rank}", weights_only=True) for rank in (0, 1)]


def parameters(record):
    return {k: v for k, v in record["model"].items() if "running_" not in k and "num_b" not in k}


def test_both_have_the_same_weights_and_other_pictures(cfg, tmp_path_factory):
    first, second = run(cfg, tmp_path_factory.mktemp("run"))
    assert_equal(parameters(first), parameters(second))
    # Batch norm goes by the own pictures. The evaluation at the end goes by those of the first.
    statistics = zip(first["statistics"].values(), second["statistics"].values())
    assert all((a != b).any() for a, b in statistics)
    assert_equal(first["model"], second["model"])
    assert len(first["names"]) == len(second["names"]) == NUM_STEPS
    # Together they go through the pictures, 7 of 7 in the first 7 places.
    stream = [
        name
        for batches in zip(first["names"], second["names"])
        for pair in zip(*batches)
        for name in pair
    ]
    assert len(set(stream[:7])) == 7 and len(set(stream[7:14])) == 7


def test_resuming_is_exact(cfg, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    whole = run(cfg, folder)
    for name in os.listdir(cfg.OUTPUT_DIR):
        os.remove(os.path.join(cfg.OUTPUT_DIR, name))
    run(cfg, folder, None, (), 2, name="part")
    rest = run(cfg, folder, name="rest")
    for a, b in zip(whole, rest):
        assert_equal(parameters(a), parameters(b))
        assert a["names"][3:] == b["names"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_of_one_is_skipped_by_both(cfg, tmp_path_factory, rank):
    first, second = run(cfg, tmp_path_factory.mktemp("run"), rank, (1, 3))
    assert first["num_skipped"] == second["num_skipped"] == 2
    assert first["error"] is second["error"] is None
    assert_equal(parameters(first), parameters(second))
    assert all(v.isfinite().all() for v in first["model"].values())


def test_too_many_end_both_and_name_the_images_of_that_one(cfg, tmp_path_factory):
    first, second = run(cfg, tmp_path_factory.mktemp("run"), 1, (1, 2))
    assert first["error"] == second["error"]
    for name in sum(second["names"][1:3], []):
        assert name in first["error"]
    others = set(sum(first["names"][1:3], [])) - set(sum(second["names"][1:3], []))
    assert others and not any(name in first["error"] for name in others)
    assert_equal(parameters(first), parameters(second))
