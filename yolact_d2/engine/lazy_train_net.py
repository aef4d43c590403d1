"""Detectron2's tools/lazyconfig_train_net.py for this project's models, on GPUs and on CPUs."""

import argparse
from datetime import timedelta
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..config import available_device, get_config_file
from .checkpointer import TrainingCheckpointer
from .launch import check_devices, launch
from .train_loop import SkipNonFiniteTrainer
from .train_net import exit_on_bad_input
from .trainer import broadcast_batch_norm_statistics

# How long a process waits for the others in a collective.
_TIMEOUT = timedelta(minutes=5)


def main() -> None:
    """Train or evaluate as the command line says, in one or several processes."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args()
    with exit_on_bad_input():
        args.config_file = get_config_file(args.config_file)
        device = load(args).train.device
        check_devices(args, device)
    launch(run, args, device, _TIMEOUT)


def load(args: argparse.Namespace) -> Any:
    """The config with its overrides. `train.device` is "cpu" if it is a GPU and there is none."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    cfg.train.device = available_device(cfg.train.device)
    return cfg


def run(args: argparse.Namespace) -> None:
    """Train or evaluate in this process."""
    cfg = load(args)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="yolact_d2")
    model = instantiate(cfg.model).to(cfg.train.device)
    if not args.eval_only:
        return train(cfg, model, args.resume)
    with exit_on_bad_input():
        TrainingCheckpointer(model).load(cfg.train.init_checkpoint)
    evaluate(cfg, model)


def train(cfg: Any, model: nn.Module, resume: bool) -> None:
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    on_cpu = {"device_ids": None} if model.device.type == "cpu" else {}
    trainer = SkipNonFiniteTrainer(
        create_ddp_model(model, **cfg.train.ddp, **on_cpu),
        instantiate(cfg.dataloader.train),
        optimizer,
        amp_dtype=torch.float16 if cfg.train.amp.enabled else None,
    )
    checkpointer = TrainingCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
            if comm.is_main_process()
            else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter),
                period=cfg.train.log_period,
            )
            if comm.is_main_process()
            else None,
        ]
    )
    with exit_on_bad_input():
        is_resumed = resume and checkpointer.last_undamaged() != ""
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    trainer.train(trainer.iter + 1 if is_resumed else 0, cfg.train.max_iter)


def evaluate(cfg: Any, model: nn.Module) -> dict[str, Any]:
    broadcast_batch_norm_statistics(model)
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


if __name__ == "__main__":
    main()
