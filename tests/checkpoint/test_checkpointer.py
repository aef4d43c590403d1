"""YOLACTCheckpointer, of files, of URLs, and after errors."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from strange_files import Call
from torch import nn

from yolact_d2.checkpoint import CheckpointMismatch, YOLACTCheckpointer


class Small(nn.Module):
    """A model of another project."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)


@pytest.fixture
def model():
    return Small()


def weights(**extra):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "conv.weight": torch.rand(4, 3, 1, 1, generator=random),
        "conv.bias": torch.rand(4, generator=random),
    }
    return {**tensors, **extra}


def assert_loaded(model):
    expected = weights()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def arrays():
    return {key: value.numpy() for key, value in weights().items()}


@pytest.fixture
def web(tmp_path):
    """A folder of what https://example.org has."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Web(PathHandler):
        def _get_supported_prefixes(self):
            return ["https://example.org/"]

        def _get_local_path(self, path, force=False, **kwargs):
            local = tmp_path / "cache"
            local.mkdir(exist_ok=True)
            return shutil.copy(folder / os.path.basename(path), local)

        def _isfile(self, path, **kwargs):
            return (folder / os.path.basename(path)).is_file()

    PathManager.register_handler(Web())
    yield folder
    del PathManager._path_handlers["https://example.org/"]


def write(path, content):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    "name, content",
    [
        ("plain.pth", weights()),
        ("ours.pth", {"model": weights(), "iteration": 3}),
        ("parallel.pth", {"model": {f"module.{k}": v for k, v in weights().items()}}),
        ("zoo.pkl", {"model": arrays(), "__author__": "x"}),
        ("caffe2.pkl", {"blobs": dict(zip(["conv_w", "conv_b"], arrays().values()))}),
    ],
)
def test_loads_what_detectron2_loads(tmp_path, web, model, remote, name, content):
    write((web if remote else tmp_path) / name, content)
    path = f"https://example.org/{name}" if remote else str(tmp_path / name)
    rest = YOLACTCheckpointer(model).load(path)
    assert_loaded(model)
    again = Small()
    expected = DetectionCheckpointer(again).load(path)
    assert_loaded(again)
    assert rest == expected


def test_names_are_matched_if_the_url_asks(web, model):
    write(web / "some.pth", {"weight": weights()["conv.weight"], "bias": weights()["conv.bias"]})
    YOLACTCheckpointer(model).load("https://example.org/some.pth?matching_heuristics=True")
    assert_loaded(model)
    with pytest.raises(ValueError, match="Unsupported query"):
        YOLACTCheckpointer(model).load("https://example.org/some.pth?other=True")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", ["some.pth", "some.pkl", "some.pyth"])
def test_nothing_runs(tmp_path, web, model, remote, name):
    mark = tmp_path / "mark"
    write((web if remote else tmp_path) / name, {"model": Call(os.mkdir, str(mark))})
    path = f"https://example.org/{name}" if remote else str(tmp_path / name)
    checkpointer = YOLACTCheckpointer(model)
    with pytest.raises(CheckpointMismatch, match=name):
        checkpointer.load(path)
    assert not mark.exists()
    # Detectron2's own could not be used again.
    write(tmp_path / "good.pth", weights())
    checkpointer.load(str(tmp_path / "good.pth"))
    assert_loaded(model)


@pytest.mark.parametrize("name", ["some.pth", "some.pkl", "some.pyth"])
def test_nothing_runs_where_a_model_is_built(shapes_cfg, tmp_path, name):
    """So that Detectron2's predictor and trainer never see the file."""
    mark = tmp_path / "mark"
    shapes_cfg.MODEL.WEIGHTS = str(write(tmp_path / name, {"model": Call(os.mkdir, str(mark))}))
    with pytest.raises(CheckpointMismatch, match=f"{name} .*(pycls|not loaded from strangers)"):
        build_model(shapes_cfg)
    assert not mark.exists()


def test_files_of_pycls_are_not_downloaded(shapes_cfg):
    shapes_cfg.MODEL.WEIGHTS = "https://example.org/some.pyth"
    with pytest.raises(CheckpointMismatch, match="some.pyth is a file of pycls"):
        build_model(shapes_cfg)


def test_misfit_names_what_was_asked_for(shapes_cfg, web):
    model = build_model(shapes_cfg)
    write(web / "some.pth", weights())
    with pytest.raises(CheckpointMismatch, match="https://example.org/some.pth: this is no"):
        YOLACTCheckpointer(model).load("https://example.org/some.pth")


@pytest.mark.parametrize("content", [{"model": {"w": 1}}, {"w": 1}, {"model": [1]}])
def test_file_without_tensors_is_named(tmp_path, model, content):
    path = write(tmp_path / "some.pth", content)
    with pytest.raises(CheckpointMismatch, match="some.pth .*no dict of tensors"):
        YOLACTCheckpointer(model).load(str(path))


def test_saves_and_resumes(tmp_path, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    model.load_state_dict(weights())
    checkpointer = YOLACTCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("last", iteration=5)
    again = Small()
    other = torch.optim.SGD(again.parameters(), lr=1.0)
    resumed = YOLACTCheckpointer(again, str(tmp_path), optimizer=other)
    assert resumed.resume_or_load("", resume=True) == {"iteration": 5}
    assert_loaded(again)
    assert other.param_groups[0]["lr"] == 0.25
    assert np.isclose(other.param_groups[0]["momentum"], 0.5)
