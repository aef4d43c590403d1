"""Detectron2's trainer for this project."""

import itertools
import logging
import os
import shutil
import weakref
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import model_node
from ..data import TrainLoader, build_test_loader, build_train_loader, check_on_each_machine
from ..evaluation import build_evaluator
from ..files import remove_partial_files
from ..modeling.backbone.batch_norm import batch_norms
from .checkpointer import TrainingCheckpointer
from .optimizer import build_optimizer
from .train_loop import SkipNonFiniteTrainer

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer with this project's data, evaluation, checkpoints and training step.

    A resumed run is the same as one that was never stopped. Training works on GPUs and on CPUs.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError: naming what is wrong with the datasets or with the config.
        """
        # Without Detectron2's constructor: its DDP fails on a CPU, and its hooks would keep its
        # own checkpointer and training step.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
            if cfg.SOLVER[key] < 1:
                raise ValueError(f"SOLVER.{key} is {cfg.SOLVER[key]}, not 1 or more")
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        keys = ["DATASETS.TRAIN", "DATASETS.TEST"] if cfg.DATASETS.TEST else ["DATASETS.TRAIN"]
        check_on_each_machine(cfg, *keys)
        model = self.build_model(cfg)
        num_images = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        is_small = num_images < cfg.MODEL.BACKBONE.FREEZE_BN_BELOW
        scales = [p for layer in batch_norms(model) for p in layer.parameters()]
        if is_small and comm.is_main_process() and not all(p.requires_grad for p in scales):
            logger.warning(
                f"Batch norm is frozen: each process has {num_images} images a step, and "
                f"MODEL.BACKBONE.FREEZE_BN_BELOW is {cfg.MODEL.BACKBONE.FREEZE_BN_BELOW} (0 never "
                "freezes it)"
            )
        optimizer = self.build_optimizer(cfg, model)
        averaged_model = None
        if cfg.SOLVER.EMA.ENABLED:
            average = get_ema_multi_avg_fn(cfg.SOLVER.EMA.DECAY)
            averaged_model = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        on_cpu = {"device_ids": None} if model.device.type == "cpu" else {}
        self._trainer = SkipNonFiniteTrainer(
            create_ddp_model(model, broadcast_buffers=False, **on_cpu),
            self.build_train_loader(cfg),
            optimizer,
            amp_dtype=amp_dtype(cfg),
            averaged_model=averaged_model,
            seed=cfg.SEED if cfg.SEED >= 0 else None,
            max_skipped=cfg.SOLVER.MAX_SKIPPED,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TrainingCheckpointer(
            averaged_model.module if averaged_model else model,
            cfg.OUTPUT_DIR,
            new_classes=cfg.MODEL[model_node(cfg)].NEW_CLASSES,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def model(self) -> nn.Module:
        """What is evaluated and saved: the trained model or, with SOLVER.EMA, its average."""
        average = self._trainer.averaged_model
        return self._trainer.model if average is None else average.module

    def resume_or_load(self, resume: bool = True) -> None:
        """Load a checkpoint in OUTPUT_DIR, or MODEL.WEIGHTS, as `TrainingCheckpointer` does."""
        if comm.is_main_process():
            remove_partial_files(self.cfg.OUTPUT_DIR)
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self._trainer.averaged_model is not None and self.start_iter == 0:
            self._trainer.start_from_average()
        if comm.is_main_process() and self.start_iter == 0:
            keep_old_metrics(self.cfg.OUTPUT_DIR)
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.start_at(self.start_iter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.start_iter = self.iter + 1

    def run_step(self) -> None:
        """
        Raises:
            FloatingPointError: see :class:`SkipNonFiniteTrainer`, naming the last checkpoint.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            last = self.checkpointer.get_checkpoint_file() or "none"
            raise FloatingPointError(f"{error}. The last checkpoint: {last}") from error

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """As Detectron2's, but nothing is scaled below 1, and SOLVER.STEPS stay distinct."""
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference > 0 and cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, not a multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE, {reference}"
            )
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg:
            return cfg
        scaled.defrost()
        for node, old, keys in (
            (scaled.SOLVER, cfg.SOLVER, ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")),
            (scaled.TEST, cfg.TEST, ("EVAL_PERIOD",)),
        ):
            for key in keys:
                node[key] = max(node[key], min(old[key], 1))
        steps: list[int] = []
        for step in scaled.SOLVER.STEPS:
            steps.append(max(step, steps[-1] + 1 if steps else 1))
        # A step at the end has no effect, and the scheduler refuses it.
        scaled.SOLVER.STEPS = tuple(step for step in steps if step < scaled.SOLVER.MAX_ITER)
        if cfg.is_frozen():
            scaled.freeze()
        return scaled

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        broadcast_batch_norm_statistics(model)
        if evaluators is None:  # all of them before the first is run
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        return super().test(cfg, model, evaluators)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP.DTYPE, None if SOLVER.AMP.ENABLED is False.

    Raises:
        ValueError: if it is neither float16 nor bfloat16.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("float16", "bfloat16"):
        raise ValueError(f"SOLVER.AMP.DTYPE is {name!r}, not one of: float16, bfloat16")
    return getattr(torch, name) if cfg.SOLVER.AMP.ENABLED else None


@torch.no_grad()
def broadcast_batch_norm_statistics(model: nn.Module) -> None:
    """Give all processes rank 0's batch norm statistics, those in checkpoints, before evaluation.

    Until then each process has the statistics of its own images. All processes must call it.
    """
    if comm.get_world_size() > 1:
        for layer in batch_norms(model):
            for statistics in layer.buffers():
                dist.broadcast(statistics, src=0)


def keep_old_metrics(folder: str) -> None:
    """Move what an earlier run wrote to metrics.json into metrics.1.json, or the next free number.

    The open file of Detectron2's `JSONWriter`, which appends to it, stays valid.
    """
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        return
    names = (os.path.join(folder, f"metrics.{i}.json") for i in itertools.count(1))
    kept = next(name for name in names if not os.path.exists(name))
    shutil.copyfile(path, kept)
    os.truncate(path, 0)
    logger.warning(
        f"{folder} has files of an earlier run. Its metrics.json is now {os.path.basename(kept)}; "
        "its checkpoints are kept; until this run saves one, --resume continues from them"
    )
