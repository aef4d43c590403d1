import pytest
import torch
from torch import nn

from yolact_d2.benchmark.variants import apply_variant, check_variant


class Model(nn.Module):
    """Calls its own forward for each image of a batch."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        if len(images) > 1:
            return torch.cat([self.forward(image[None]) for image in images])
        return self.backbone(images)


def test_amp_ends_with_the_call():
    model = apply_variant("amp", Model())
    assert model(torch.rand(2, 3, 8, 8)).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert Model()(torch.rand(2, 3, 8, 8)).dtype == torch.float32


def test_several_at_once():
    model = apply_variant("amp+channels-last", Model())
    assert model.backbone.weight.is_contiguous(memory_format=torch.channels_last)
    assert model(torch.rand(1, 3, 8, 8)).dtype == torch.bfloat16


def test_float32_changes_nothing():
    model = Model()
    before = dict(vars(model))
    assert apply_variant("float32", model) is model and vars(model) == before


@pytest.mark.parametrize("name, mode", [("compile", "default"), ("cuda-graphs", "reduce-overhead")])
def test_compile_replaces_what_there_is_of_the_networks(monkeypatch, name, mode):
    modes = []

    def compiled(forward, mode):
        modes.append(mode)
        return lambda x: forward(x) * 0 + 7

    monkeypatch.setattr(torch, "compile", compiled)
    model = apply_variant(name, Model())
    assert (model(torch.rand(2, 3, 8, 8)) == 7).all()
    assert modes == [mode]


def test_unknown_variant():
    assert check_variant("amp+compile") == "amp+compile"
    with pytest.raises(ValueError, match="unknown variant 'fast'; known are float32, amp, "):
        check_variant("amp+fast")
