"""Stages on a fake clock, which only moves when a part of the fake model works."""

import pytest
import torch
from torch import nn

from yolact_d2.benchmark.anatomy import Anatomy, Place
from yolact_d2.benchmark.clock import StageClock, device_clock, observed


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


class Backbone(nn.Module):
    def __init__(self, time):
        super().__init__()
        self.time = time
        self.name = "some backbone"

    def forward(self, x):
        self.time.pass_by(10)
        return x


class FakeModel(nn.Module):
    """Like an R-CNN: NMS in the heads as well as at their end, masks last."""

    def __init__(self, time, num_images=1):
        super().__init__()
        self.time, self.num_images = time, num_images
        self.backbone = Backbone(time)

    def preprocess(self):
        self.time.pass_by(0.5)

    def proposal_nms(self):
        self.time.pass_by(2)

    def nms(self):
        self.time.pass_by(3)

    def masks(self):
        self.time.pass_by(5)

    def forward(self):
        self.preprocess()
        assert self.backbone.name == "some backbone"
        self.backbone(torch.zeros(1))
        self.time.pass_by(4)
        self.proposal_nms()
        self.time.pass_by(1)
        for _ in range(self.num_images):
            self.nms()
            self.time.pass_by(0.25)
            self.masks()

    def anatomy(self, **changes):
        parts = dict(
            preprocess=Place(self, "preprocess"),
            backbone=Place(self, "backbone"),
            final_nms=Place(self, "nms"),
            threshold=Place(self, "threshold"),
            other_nms=(Place(self, "proposal_nms"),),
            masks=(Place(self, "masks"),),
        )
        return Anatomy(**{**parts, **changes})


def stages_of(model, anatomy):
    """Stages of a call, and how long it took in all."""
    clock = StageClock(model.time)
    start = model.time()
    clock.start("preprocess")
    model.time.pass_by(1)  # resizes
    with observed(anatomy, clock):
        model()
    return clock.stop(), model.time() - start


def test_each_moment_belongs_to_the_innermost_stage():
    model = FakeModel(FakeTime())
    stages, _ = stages_of(model, model.anatomy())
    expected = {"preprocess": 1.5, "backbone": 10, "heads": 5.25, "nms": 5, "masks": 5}
    assert stages == pytest.approx(expected)


@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"masks": ()}, {"masks": (), "masks_follow_nms": True}])
def test_stages_add_up_to_the_total(num_images, changes):
    model = FakeModel(FakeTime(), num_images)
    stages, total = stages_of(model, model.anatomy(**changes))
    assert total > 25
    assert sum(stages.values()) == pytest.approx(total, rel=0.05)


def test_all_that_follows_nms_is_masks_where_a_model_says_so():
    model = FakeModel(FakeTime())
    anatomy = model.anatomy(masks=(), masks_follow_nms=True)
    stages, _ = stages_of(model, anatomy)
    assert stages["masks"] == pytest.approx(5.25) and stages["heads"] == pytest.approx(5)


def test_a_model_without_masks_has_no_such_stage():
    model = FakeModel(FakeTime())
    anatomy = model.anatomy(masks=())
    stages, _ = stages_of(model, anatomy)
    assert not anatomy.has_masks
    assert list(stages) == ["preprocess", "backbone", "heads", "nms"]


def test_parts_of_a_batch_one_after_the_other():
    model = FakeModel(FakeTime())
    model.forward = lambda: [FakeModel.forward(model) for _ in range(2)]
    stages, _ = stages_of(model, model.anatomy(masks=(), masks_follow_nms=True))
    expected = {"preprocess": 2, "backbone": 20, "heads": 10, "nms": 10, "masks": 10.5}
    assert stages == pytest.approx(expected)


def test_the_model_is_left_as_it_was():
    model = FakeModel(FakeTime())
    before, backbone = dict(vars(model)), model.backbone
    stages_of(model, model.anatomy())
    assert vars(model) == before
    assert model.backbone is backbone and dict(model.named_children()) == {"backbone": backbone}


def test_an_attribute_of_its_own_is_put_back():
    model = FakeModel(FakeTime())
    model.nms = own = lambda: None
    with pytest.raises(KeyError), Place(model, "nms").replaced(lambda nms: nms):
        raise KeyError
    assert vars(model)["nms"] is own


def test_the_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device_clock(torch.device("cpu"))()
    assert waited == []
    device_clock(torch.device("cuda:1"))()
    assert waited == [torch.device("cuda:1")]
