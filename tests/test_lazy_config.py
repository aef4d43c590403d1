"""The Python configs give the models, data, optimizers and schedules of the YAML configs."""

import json

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from plain import CONFIGS, assert_equal
from processes import REPO, assert_refused, run_programs
from small_models import training_input

from yolact_d2 import load_config, model_zoo
from yolact_d2.data.shapes import generate_shapes

NAMES = sorted(path.stem for path in (CONFIGS / "lazy").glob("*.py"))


def configs(name):
    yaml_cfg = load_config(name, ["MODEL.DEVICE", "cpu"])
    lazy_cfg = LazyConfig.load(str(CONFIGS / "lazy" / f"{name}.py"))
    return yaml_cfg, lazy_cfg


@pytest.mark.slow
def test_program_trains_resumes_and_evaluates(tmp_path):
    generate_shapes(str(tmp_path / "shapes"), num_train=8, num_val=3)
    program = [REPO / "lazyconfig_train_net.py", "--num-gpus", 0, "--config-file"]
    opts = [
        f"train.output_dir={tmp_path}/output", "train.log_period=1", "model.image_size=96",
        "dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0", "model.test_anchor_score_thresh=0.0",
    ]  # fmt: skip
    name, weights = "yolact_shapes.py", f"train.init_checkpoint={tmp_path}/output/model_final.pth"
    trained, evaluated, resumed, refused = run_programs(
        *(
            [*program, name, *args, *opts]
            for args in (
                ["train.max_iter=2"],
                ["--eval-only", weights],
                ["--resume", "train.max_iter=4"],
                ["train.init_checkpoint=nowhere.pth"],
            )
        ),
        DETECTRON2_DATASETS=str(tmp_path),
    )
    assert not (trained.returncode or evaluated.returncode or resumed.returncode), trained.stderr
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = [x for x in map(json.loads, lines) if "total_loss" in x]
    assert [x["iteration"] for x in metrics] == [0, 1, 2, 3]
    results = [
        [line for line in done.stdout.splitlines() if "copypaste" in line]
        for done in (trained, evaluated)
    ]
    assert len(results[0]) == 6 and [x.split("copypaste")[1] for x in results[0]] == [
        x.split("copypaste")[1] for x in results[1]
    ]
    assert_refused(refused, "nowhere.pth")


def test_the_zoo_reaches_both_kinds():
    cfg = model_zoo.get_config("yolact_R_50_FPN_550.py", trained=True, opts=["train.max_iter=7"])
    assert cfg.train.init_checkpoint == model_zoo.get_checkpoint_url("yolact_R_50_FPN_550")
    assert cfg.train.max_iter == 7
    model = model_zoo.get("yolact_shapes.py", device="cpu")
    assert_equal(
        {k: v.shape for k, v in model.state_dict().items()},
        {k: v.shape for k, v in model_zoo.get("yolact_shapes", device="cpu").state_dict().items()},
    )


def test_the_main_models_have_lazy_configs():
    assert {"yolact_R_50_FPN_550", "yolact_plus_R_50_FPN_550", "embedmask_R_50_FPN_1x"} <= {*NAMES}
    assert set(NAMES) <= set(model_zoo.names())


@pytest.mark.parametrize("name", NAMES)
def test_models_have_the_same_tensors_and_losses(name):
    yaml_cfg, lazy_cfg = configs(name)
    if name.startswith("yolact"):
        yaml_cfg.INPUT.IMAGE_SIZE = lazy_cfg.model.image_size = 276
        if "plus" in name:
            lazy_cfg.model.mask_iou_head.mask_size = 70
    expected, got = build_model(yaml_cfg), instantiate(lazy_cfg.model)
    assert list(got.state_dict()) == list(expected.state_dict())
    got.load_state_dict(expected.state_dict())  # raises if a shape differs
    trained = [name for name, p in expected.named_parameters() if p.requires_grad]
    assert [name for name, p in got.named_parameters() if p.requires_grad] == trained

    inputs = [training_input([[8, 8, 100, 90], [40, 20, 120, 120]], 138, 138)] * 2
    losses = []
    for model in expected.train(), got.train():
        torch.manual_seed(0)
        losses.append({key: loss.item() for key, loss in model(inputs).items()})
    assert losses[0] == losses[1] and losses[0]["loss_mask"] > 0
    for attribute in vars(expected):
        if attribute.startswith("test_") or attribute in ("input_format", "head_in_features"):
            assert getattr(got, attribute) == getattr(expected, attribute), attribute


@pytest.mark.parametrize("name", [name for name in NAMES if "shapes" not in name])
def test_optimizers_schedules_and_mappers_are_the_same(name):
    yaml_cfg, lazy_cfg = configs(name)
    solver = yaml_cfg.SOLVER
    assert lazy_cfg.train.max_iter == solver.MAX_ITER
    assert lazy_cfg.train.init_checkpoint == yaml_cfg.MODEL.WEIGHTS
    assert lazy_cfg.dataloader.train.total_batch_size == solver.IMS_PER_BATCH

    model = instantiate(lazy_cfg.model)
    lazy_cfg.optimizer.params.model = model
    got, expected = instantiate(lazy_cfg.optimizer), build_optimizer(yaml_cfg, model)
    wanted = ("lr", "weight_decay", "momentum")
    groups = [
        sorted((*(g[key] for key in wanted), sum(p.numel() for p in g["params"])) for g in groups)
        for groups in (got.param_groups, expected.param_groups)
    ]
    assert groups[0] == groups[1]

    factor = instantiate(lazy_cfg.lr_multiplier)
    scheduler = build_lr_scheduler(yaml_cfg, expected)
    for i in (0, 1, 250, 499, 500, *(s + d for s in solver.STEPS for d in (-1, 0, 1))):
        value = scheduler._multiplier(i / solver.MAX_ITER)
        assert factor(i / solver.MAX_ITER) == pytest.approx(value)
