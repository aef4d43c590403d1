"""Models by name, in a clone and in an installed package."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo as detectron2_model_zoo
from plain import assert_equal

from yolact_d2 import model_zoo

REPO = Path(__file__).resolve().parents[1]
FILES = sorted(p.name for p in (REPO / "configs").glob("*.yaml") if "Base" not in p.name)


def test_names_are_those_of_the_configs():
    assert [f"{name}.yaml" for name in model_zoo.names()] == FILES


def test_configs_are_files_or_names_in_a_model_zoo():
    path = str(REPO / "configs" / "yolact_R_101_FPN_700.yaml")
    for name in (path, "yolact_R_101_FPN_700", "yolact_R_101_FPN_700.yaml"):
        assert model_zoo.get_config_file(name) == path
        assert model_zoo.get_config(name).INPUT.IMAGE_SIZE == 700
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    path = detectron2_model_zoo.get_config_file(f"{name}.yaml")
    assert [model_zoo.get_config_file(x) for x in (name, f"{name}.yaml")] == [path, path]


def test_unknown_name_is_an_error_with_the_known_names():
    for name in ("yolact_R_50", "Base-YOLACT", "", "../configs/yolact_shapes"):
        with pytest.raises(OSError, match="no model.*yolact_R_50_FPN_550, .*shapes") as error:
            model_zoo.get_config(name)
        assert repr(name) in str(error.value)


def test_weights_are_a_backbone_unless_asked_otherwise():
    name = "yolact_plus_R_50_FPN_550"
    assert "resnet50" in model_zoo.get_config(name).MODEL.WEIGHTS
    trained = model_zoo.get_config(name, trained=True).MODEL.WEIGHTS
    assert trained.endswith("/yolact_plus_resnet50_54_800000.pth")
    assert model_zoo.get_config(name, weights="mine.pth").MODEL.WEIGHTS == "mine.pth"
    with pytest.raises(ValueError, match="give one"):
        model_zoo.get_config(name, trained=True, weights="mine.pth")


def test_every_url_is_in_the_table():
    rows = [x for x in (REPO / "MODEL_ZOO.md").read_text().splitlines() if x.startswith("| [")]
    urls = {}
    for name in model_zoo.names():
        try:
            urls[name] = model_zoo.get_checkpoint_url(name)
        except ValueError as error:
            assert repr(name) in str(error)
    assert len(urls) == len(rows) == 6
    for name, url in urls.items():
        assert any(f"({url})" in row and f"`{name}.yaml`" in row for row in rows), name


def test_model_has_its_weights_and_is_in_training_mode(tmp_path):
    model = model_zoo.get("yolact_shapes", device="cpu")
    torch.save({"model": model.state_dict()}, tmp_path / "mine.pth")
    again = model_zoo.get("yolact_shapes", device="cpu", weights=str(tmp_path / "mine.pth"))
    assert again.training
    assert_equal(again.state_dict(), model.state_dict())


@pytest.mark.slow
def test_installed_package_has_configs_and_programs(tmp_path):
    source, wheels, site = (tmp_path / name for name in ("source", "wheels", "site"))
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(REPO / name, source)
    for name in ("configs", "demo", "tools", "yolact_d2"):
        shutil.copytree(REPO / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*build, "--no-index", "-w", str(wheels), str(source)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.iterdir()
    zipfile.ZipFile(wheel).extractall(site)
    installed = sorted(os.listdir(site / "yolact_d2" / "configs"))
    folders = ["common", "lazy"]
    assert installed == sorted(["Base-EmbedMask.yaml", "Base-YOLACT.yaml", *folders, *FILES])

    def run(code):
        env = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
        )

    done = run(
        "import sys; from yolact_d2 import model_zoo as zoo; print(zoo.names()); "
        "print(zoo.get_config('yolact_shapes').OUTPUT_DIR, zoo.__file__); "
        "from yolact_d2.demo.demo import main; sys.exit(main())"
    )
    assert str(model_zoo.names()) in done.stdout, done.stderr
    assert f"./output/shapes {site}" in done.stdout
    # The demo, called as the script of its entry point does, misses an option.
    assert done.returncode == 2 and "--config-file" in done.stderr
