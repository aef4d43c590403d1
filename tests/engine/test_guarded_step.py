"""Batches whose loss or gradients are not finite."""

import copy
import logging

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils.events import EventStorage
from plain import assert_equal
from torch import nn

from yolact_d2.engine import GuardedTrainer
from yolact_d2.engine.guarded_step import image_name, step_seed


class Model(nn.Module):
    """Losses of x, two features an image; "broken" says how they go wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(2)
        self.linear = nn.Linear(2, 1)

    def forward(self, batch):
        y = self.linear(self.norm(torch.stack([x["x"] for x in batch])))
        losses = {"loss_cls": y.square().mean(), "loss_mask": y.abs().mean()}
        how = {x["broken"] for x in batch} - {None}
        if "gradient" in how:  # the square root's at 0
            losses["loss_cls"] = losses["loss_cls"] + (self.linear.weight * 0).sqrt().sum()
        elif how:
            losses["loss_mask"] = losses["loss_mask"] * how.pop()
        return losses


def batch(first_id, broken=None, x=1.0):
    return [
        {
            "image_id": first_id + i,
            "file_name": f"{first_id + i}.jpg",
            "x": torch.tensor([x, i * 1.0]),
            "broken": broken if i == 1 else None,
        }
        for i in range(3)
    ]


def trainer_of(batches, **kwargs):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = GuardedTrainer(model, batches, optimizer, **kwargs)
    trainer.max_iter = len(batches)
    return trainer


def run(trainer, num_steps, first=0):
    with EventStorage(first) as storage:
        for trainer.iter in range(first, first + num_steps):
            storage.iter = trainer.iter
            trainer.run_step()
        return storage


def state(trainer):
    """Weights, statistics and momentum."""
    return copy.deepcopy([trainer.model.state_dict(), trainer.optimizer.state_dict()])


FAULTS = [float("nan"), float("inf"), float("-inf"), "gradient"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_batch_changes_nothing(fault):
    trainer = trainer_of([batch(0), batch(10, fault), batch(20)])
    run(trainer, 1)
    before = state(trainer)
    run(trainer, 1, first=1)
    assert_equal(state(trainer), before)
    assert trainer.num_skipped == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_training_goes_on_as_if_it_had_not_been_there(fault):
    with_fault = trainer_of([batch(0), batch(10, fault), batch(20)])
    without = trainer_of([batch(0), batch(20)])
    run(with_fault, 3)
    run(without, 2)
    assert_equal(state(with_fault), state(without))


def test_statistics_that_a_picture_has_spoilt_are_put_back():
    trainer = trainer_of([batch(0), batch(10, x=float("nan"))])
    run(trainer, 2)
    assert trainer.num_skipped == 1
    assert trainer.model.norm.running_mean.isfinite().all()
    assert trainer.model.norm.num_batches_tracked == 1


def test_an_ordinary_step_is_detectron2s():
    ours = trainer_of([batch(0), batch(10)])
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    theirs = SimpleTrainer(model, [batch(0), batch(10)], optimizer)
    storages = [run(trainer, 2) for trainer in (ours, theirs)]
    assert_equal(state(ours), state(theirs))
    latest = [storage.latest() for storage in storages]
    assert latest[0].keys() == latest[1].keys()
    for key in ("loss_cls", "loss_mask", "total_loss"):
        assert latest[0][key] == latest[1][key]


def test_hooks_are_called_after_each_backward():
    class Count(HookBase):
        num_calls = 0

        def after_backward(self):
            self.num_calls += 1

    trainer, count = trainer_of([batch(0), batch(10, float("nan")), batch(20)]), Count()
    trainer.register_hooks([count])
    run(trainer, 3)
    assert count.num_calls == 2


def test_it_is_logged_with_images_and_counted(caplog):
    batches = [batch(0), batch(10, float("nan")), batch(20), batch(30, float("inf"))]
    trainer = trainer_of(batches)
    with caplog.at_level(logging.WARNING):
        storage = run(trainer, 4)
    first, second = [record.getMessage() for record in caplog.records]
    assert "iteration 1: loss_mask is nan" in first
    assert "10: 10.jpg, 11: 11.jpg, 12: 12.jpg" in first
    assert "1 in a row, 1 in all" in first
    assert "iteration 3: loss_mask is inf" in second and "31: 31.jpg" in second
    assert "1 in a row, 2 in all" in second
    assert storage.latest()["num_skipped_batches"] == (2, 3)


def test_gradients_are_named_as_the_fault(caplog):
    run(trainer_of([batch(0, "gradient")]), 1)
    assert "the gradients are not finite" in caplog.text and "1: 1.jpg" in caplog.text


@pytest.mark.parametrize("checkpoint", ["", "run/model_0000999.pth"])
def test_too_many_in_a_row_end_training(checkpoint):
    batches = [batch(10 * i, None if i in (0, 2) else float("nan")) for i in range(6)]
    trainer = trainer_of(batches, max_skipped=3, last_checkpoint=lambda: checkpoint)
    run(trainer, 5)
    before = state(trainer)
    with pytest.raises(FloatingPointError) as caught:
        run(trainer, 1, first=5)
    message = str(caught.value)
    assert "3 batches in a row (SOLVER.MAX_SKIPPED)" in message
    # Those in a row, not the one before.
    for image in ("30: 30.jpg", "41: 41.jpg", "52: 52.jpg"):
        assert image in message
    assert "10: 10.jpg" not in message
    assert (checkpoint or "no checkpoint before them") in message
    assert_equal(state(trainer), before)


def test_the_checkpoint_is_that_from_before_them():
    written = []
    batches = [batch(10 * i, float("nan") if i > 1 else None) for i in range(5)]
    trainer = trainer_of(batches, max_skipped=3, last_checkpoint=lambda: written[-1])
    for step in range(4):
        written.append(f"checkpoint {step}")
        run(trainer, 1, first=step)
    written.append("checkpoint 4")
    with pytest.raises(FloatingPointError, match="before them is checkpoint 2"):
        run(trainer, 1, first=4)


def test_the_count_is_saved():
    trainer = trainer_of([batch(0, float("nan")), batch(10)])
    run(trainer, 2)
    other = trainer_of([])
    other.load_state_dict(trainer.state_dict())
    assert other.num_skipped == 1


def test_amp_without_a_gpu_is_refused_at_once():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED"):
            trainer_of([], amp=True)


class Draws(nn.Module):
    """Its loss is what it draws."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.drawn = []

    def forward(self, batch):
        self.drawn.append(torch.rand(()).item())
        return {"loss": self.weight * 0}


def test_what_a_step_draws_depends_on_seed_and_iteration():
    def drawn(seed, first, num):
        model = Draws()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run(GuardedTrainer(model, [[]] * num, optimizer, seed=seed), num, first)
        return model.drawn

    torch.manual_seed(5)
    whole = drawn(1, 0, 4)
    assert len(set(whole)) == 4
    torch.manual_seed(6)
    assert drawn(1, 2, 2) == whole[2:]
    assert drawn(2, 0, 4) != whole
    torch.manual_seed(7)
    expected = torch.rand(4).tolist()
    torch.manual_seed(7)
    assert drawn(None, 0, 4) == expected


def test_step_seeds_differ():
    seeds = {step_seed(s, r, i) for s in range(3) for r in range(3) for i in range(50)}
    assert len(seeds) == 3 * 3 * 50
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_images_without_ids():
    assert image_name({"file_name": "a.jpg"}) == "a.jpg"
    assert image_name({"image": None}) == "unknown"
