"""Batches with non-finite losses or gradients, on one process and a small model."""

import copy
import logging

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from plain import assert_equal
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from yolact_d2.engine import SkipNonFiniteTrainer

NAN, INF = float("nan"), float("inf")


class Model(nn.Module):
    """Two losses of x, two features an image; "fault" multiplies one of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(2)
        self.linear = nn.Linear(2, 1)

    def forward(self, batch):
        y = self.linear(self.norm(torch.stack([image["x"] for image in batch])))
        losses = {"loss_cls": y.square().mean(), "loss_mask": y.abs().mean()}
        fault = batch[1]["fault"]
        if fault == "gradient":  # of the square root at 0
            losses["loss_cls"] = losses["loss_cls"] + (self.linear.weight * 0).sqrt().sum()
        elif fault is not None:
            losses["loss_mask"] = losses["loss_mask"] * fault
        return losses


def batch(first_id, fault=None, x=1.0):
    return [
        {"image_id": i, "file_name": f"{i}.jpg", "x": torch.tensor([x, i * 1.0]), "fault": fault}
        for i in range(first_id, first_id + 3)
    ]


def build(batches, trainer_class=SkipNonFiniteTrainer, **kwargs):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return trainer_class(model, batches, optimizer, **kwargs)


def run(trainer, num_steps, first=0):
    with EventStorage(first) as storage:
        for trainer.iter in range(first, first + num_steps):
            storage.iter = trainer.iter
            trainer.run_step()
        return storage


def state(trainer):
    """Weights, statistics and momentum."""
    return copy.deepcopy([trainer.model.state_dict(), trainer.optimizer.state_dict()])


@pytest.mark.parametrize("fault, x", [(NAN, 1), (INF, 1), (-INF, 1), ("gradient", 1), (None, NAN)])
def test_a_skipped_batch_changes_nothing(fault, x):
    """Not the statistics of batch norm either, which are nan with an x of nan."""
    trainer = build([batch(0), batch(10, fault, x), batch(20)])
    run(trainer, 1)
    before = state(trainer)
    run(trainer, 1, first=1)
    assert_equal(state(trainer), before)
    assert trainer.num_skipped == 1
    run(trainer, 1, first=2)
    without = build([batch(0), batch(20)])
    run(without, 2)
    assert_equal(state(trainer), state(without))


def test_an_ordinary_step_is_that_of_detectron2():
    trainers = [
        build([batch(0), batch(10)], kind) for kind in (SkipNonFiniteTrainer, SimpleTrainer)
    ]
    storages = [run(trainer, 2) for trainer in trainers]
    assert_equal(*map(state, trainers))
    ours, theirs = (storage.latest() for storage in storages)
    assert ours.keys() == theirs.keys()
    for key in ("loss_cls", "loss_mask", "total_loss"):
        assert ours[key] == theirs[key]


def test_skipped_batches_are_logged_with_their_images_and_counted(caplog):
    batches = [batch(0), batch(10, NAN), batch(20), batch(30, INF), batch(40, "gradient")]
    trainer = build(batches)
    with caplog.at_level(logging.WARNING):
        storage = run(trainer, 5)
    first, second, third = [record.getMessage() for record in caplog.records]
    assert "iteration 1: loss_mask is nan" in first
    assert "10: 10.jpg, 11: 11.jpg, 12: 12.jpg" in first
    assert "in a row: 1, in all: 1" in first
    assert "iteration 3: loss_mask is inf" in second and "31: 31.jpg" in second
    assert "in a row: 1, in all: 2" in second
    assert "iteration 4: the gradients are not finite" in third and "41: 41.jpg" in third
    assert "in a row: 2, in all: 3" in third
    assert storage.latest()["num_skipped_batches"] == (3, 4)
    other = build([])
    other.load_state_dict(trainer.state_dict())
    assert other.num_skipped == 3


def test_too_many_skipped_in_a_row_stop_training_and_their_images_are_named():
    batches = [batch(10 * i, None if i in (0, 2) else NAN) for i in range(6)]
    trainer = build(batches, max_skipped=3)
    run(trainer, 5)
    before = state(trainer)
    with pytest.raises(FloatingPointError) as caught:
        run(trainer, 1, first=5)
    message = str(caught.value)
    assert "3 batches in a row (SOLVER.MAX_SKIPPED)" in message
    assert all(name in message for name in ("30: 30.jpg", "41: 41.jpg", "52: 52.jpg"))
    assert "10: 10.jpg" not in message  # skipped, but not in a row with them
    assert_equal(state(trainer), before)


def test_float16_needs_a_gpu():
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED.*bfloat16"):
        build([], amp_dtype=torch.float16)


def test_bfloat16_is_used_in_the_forward_pass():
    trainer, dtypes = build([batch(0)], amp_dtype=torch.bfloat16), []
    trainer.model.linear.register_forward_hook(lambda *x: dtypes.append(x[-1].dtype))
    run(trainer, 1)
    assert dtypes == [torch.bfloat16]
    assert trainer.model.linear.weight.grad.dtype == torch.float32


def test_the_average_is_exponential_and_leaves_out_skipped_batches():
    trainer = build([batch(0), batch(10, NAN), batch(20), batch(30)])
    average = get_ema_multi_avg_fn(0.75)
    trainer.averaged_model = AveragedModel(trainer.model, multi_avg_fn=average, use_buffers=True)
    expected = None
    for i in range(4):
        run(trainer, 1, first=i)
        new = {k: v.clone() for k, v in trainer.model.state_dict().items() if v.is_floating_point()}
        if expected is None:
            expected = new
        elif i != 1:
            expected = {k: 0.75 * expected[k] + 0.25 * v for k, v in new.items()}
        got = trainer.averaged_model.module.state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value)


def test_random_numbers_depend_on_seed_and_iteration_alone():
    def drawn(seed, first, num, global_seed=5):
        trainer, numbers = build([batch(0)] * num, seed=seed), []
        trainer.model.register_forward_hook(lambda *_: numbers.append(torch.rand(()).item()))
        torch.manual_seed(global_seed)
        run(trainer, num, first)
        return numbers

    whole = drawn(1, 0, 4)
    assert len(set(whole)) == 4
    assert drawn(1, 2, 2, global_seed=6) == whole[2:]
    assert drawn(2, 0, 4) != whole
    without_seed = drawn(None, 0, 4)
    torch.manual_seed(5)
    assert without_seed == torch.rand(4).tolist()
