"""Models by name, from a clone and from an installed package."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from yolact_d2 import model_zoo

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = sorted(name for name in os.listdir(os.path.join(REPO, "configs")) if "Base" not in name)


def test_names_are_those_of_the_configs():
    assert [f"{name}.yaml" for name in model_zoo.names()] == FILES


@pytest.mark.parametrize("name", ["yolact_R_101_FPN_700", "yolact_R_101_FPN_700.yaml"])
def test_name_with_and_without_ending(name):
    expected = os.path.join(REPO, "configs", "yolact_R_101_FPN_700.yaml")
    assert model_zoo.get_config_file(name) == expected
    assert model_zoo.get_config(name).INPUT.IMAGE_SIZE == 700


@pytest.mark.parametrize("name", ["yolact_R_50", "Base-YOLACT", "", "../configs/yolact_shapes"])
def test_unknown_name_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match="no model.*yolact_R_50_FPN_550, .*yolact_shapes") as error:
        model_zoo.get_config(name)
    assert repr(name) in str(error.value)


def test_weights_are_what_training_starts_from_unless_asked():
    name = "yolact_plus_R_50_FPN_550"
    assert "resnet50" in model_zoo.get_config(name).MODEL.WEIGHTS
    trained = model_zoo.get_config(name, trained=True).MODEL.WEIGHTS
    assert trained.endswith("/yolact_plus_resnet50_54_800000.pth")
    assert model_zoo.get_config(name, weights="mine.pth").MODEL.WEIGHTS == "mine.pth"
    with pytest.raises(ValueError, match="give one"):
        model_zoo.get_config(name, trained=True, weights="mine.pth")


def test_every_address_is_in_the_table():
    with open(os.path.join(REPO, "MODEL_ZOO.md")) as file:
        rows = [line for line in file if line.startswith("| [")]
    addresses = {}
    for name in model_zoo.names():
        try:
            addresses[name] = model_zoo.get_checkpoint_url(name)
        except ValueError as error:
            assert repr(name) in str(error)
    assert len(addresses) == len(rows) == 6
    for name, address in addresses.items():
        assert any(f"({address})" in row and f"`{name}.yaml`" in row for row in rows), name


def test_no_model_starts_from_a_pickle():
    for name in model_zoo.names():
        assert (
            model_zoo.get_config(name).MODEL.WEIGHTS.endswith(".pth")
            or "shapes" in name
            or (name == "yolact_darknet53_FPN_550")
        )


def test_overrides():
    cfg = model_zoo.get_config("yolact_shapes", opts=["INPUT.IMAGE_SIZE", "64"])
    assert cfg.INPUT.IMAGE_SIZE == 64 and not cfg.is_frozen()


def test_model_has_its_weights_and_is_in_training_mode(tmp_path):
    model = model_zoo.get("yolact_shapes", device="cpu")
    torch.save({"model": model.state_dict()}, tmp_path / "mine.pth")
    again = model_zoo.get("yolact_shapes", device="cpu", weights=str(tmp_path / "mine.pth"))
    assert again.training
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_installed_package_has_the_configs(tmp_path):
    source, wheels, site = (tmp_path / name for name in ("source", "wheels", "site"))
    source.mkdir()
    shutil.copy(os.path.join(REPO, "setup.py"), source)
    for folder in ("configs", "yolact_d2"):
        shutil.copytree(os.path.join(REPO, folder), source / folder)
    pip_wheel = [sys.executable, "-m", "pip", "wheel"]
    build = [*pip_wheel, "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*build, "-w", str(wheels), str(source)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.iterdir()
    zipfile.ZipFile(wheel).extractall(site)
    assert sorted(os.listdir(site / "yolact_d2" / "configs")) == ["Base-YOLACT.yaml", *FILES]

    done = subprocess.run(
        [sys.executable, "-c", "from yolact_d2 import model_zoo as zoo; print(zoo.names()); "
         "print(zoo.get_config('yolact_shapes').OUTPUT_DIR, zoo.__file__)"],
        env={**os.environ, "PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(model_zoo.names()) in done.stdout
    assert f"./output/shapes {site}" in done.stdout
