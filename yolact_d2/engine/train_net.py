"""The training program, ``yolact-train``: Detectron2's tools/train_net.py for this project."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint import check_weights_exist
from ..config import (
    available_device,
    for_this_machine,
    get_config_file,
    load_config,
    model_node,
)
from ..data import COCODataset, check_on_each_machine, use_coco_datasets
from ..evaluation import evaluator_type
from .checkpointer import TrainingCheckpointer
from .launch import BAD_INPUT_STATUS, check_devices, launch
from .trainer import Trainer


def main() -> None:
    """Train or evaluate as the command line says, in one or several processes."""
    args = parse_args()
    with exit_on_bad_input():
        args.config_file = get_config_file(args.config_file)  # Detectron2 logs what is in it.
        cfg = load_config(args.config_file, args.opts, keep_device=True)
        device = available_device(cfg.MODEL.DEVICE)
        check_devices(args, device)
    launch(run, args, device, timedelta(seconds=cfg.DIST_TIMEOUT_SECONDS))


def parse_args() -> argparse.Namespace:
    """Parse the command line: Detectron2's options, and COCO JSON files in place of DATASETS."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")  # Detectron2's fixed port would be the same for all runs.
    group = parser.add_argument_group("datasets in COCO's format, in place of DATASETS")
    for split in ("train", "val"):
        group.add_argument(f"--{split}-json", metavar="FILE")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")
    args = parser.parse_args()
    for split, dataset in zip(("train", "val"), coco_datasets(args)):
        if dataset is None:
            continue
        if None in dataset:
            parser.error(f"--{split}-json and --{split}-images must be given together")
        if not os.path.isfile(dataset.json_file):
            parser.error(f"--{split}-json: there is no file {dataset.json_file!r}")
        if not os.path.isdir(dataset.image_root):
            parser.error(f"--{split}-images: there is no folder {dataset.image_root!r}")
    if args.eval_only and args.train_json and not args.val_json:
        parser.error("--eval-only evaluates on --val-json, which is missing")
    if args.val_json and not args.train_json and not args.eval_only:
        parser.error("--val-json needs --train-json, or --eval-only")
    if args.num_machines > 1 and args.dist_url == "auto" and not dist.is_torchelastic_launched():
        parser.error("--num-machines needs --dist-url tcp://ADDRESS:PORT, of machine 0")
    return args


def coco_datasets(args: argparse.Namespace) -> list[COCODataset | None]:
    """The datasets to train and to evaluate on, None where the command line names none."""
    pairs = (args.train_json, args.train_images), (args.val_json, args.val_images)
    return [COCODataset(*pair) if any(pair) else None for pair in pairs]


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate in this process; return the results of the evaluation."""
    with exit_on_bad_input():
        cfg = setup(args)
        for name in cfg.DATASETS.TEST:
            evaluator_type(name)  # else it would be refused after training
    if args.eval_only:
        with exit_on_bad_input():
            check_on_each_machine(cfg, "DATASETS.TEST")
            model = Trainer.build_model(cfg)
            checkpointer = TrainingCheckpointer(model, cfg.OUTPUT_DIR)
            weights = (args.resume and checkpointer.last_undamaged()) or cfg.MODEL.WEIGHTS
            if not weights:
                raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate")
            checkpointer.load(weights)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    if args.resume and TrainingCheckpointer(nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint():
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.CHECK_IMAGES = False  # The first start has checked them.
        cfg.freeze()
    with exit_on_bad_input():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config, register the datasets, set up the logs and write config.yaml.

    config.yaml has the MODEL.DEVICE that was asked for; a later run may find a GPU.
    """
    cfg = load_config(args.config_file, args.opts, keep_device=True)
    train, val = coco_datasets(args)
    if train or val:
        use_coco_datasets(cfg, train, val, trained_with=trained_config(cfg, args))
    cfg.freeze()
    if not args.resume:
        check_weights_exist(cfg.MODEL.WEIGHTS)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="yolact_d2")
    cfg = for_this_machine(cfg)
    cfg.freeze()
    return cfg


def trained_config(cfg: CfgNode, args: argparse.Namespace) -> CfgNode | None:
    """The config with the classes of the model to resume or evaluate, None if there is none."""
    if not (args.resume or args.eval_only):
        return None
    if cfg.MODEL[model_node(cfg)].CLASS_NAMES:
        return cfg
    folder = cfg.OUTPUT_DIR if args.resume else os.path.dirname(cfg.MODEL.WEIGHTS)
    path = os.path.join(folder, "config.yaml")
    return load_config(path, keep_device=True) if os.path.isfile(path) else None


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """End this process with exit status 2 and a message on bad input, as argparse does."""
    try:
        yield
    except (OSError, ValueError, AssertionError) as error:  # Detectron2 asserts.
        if int(os.environ.get("LOCAL_RANK", comm.get_local_rank())) > 0:
            # Most errors are found by all processes. Local rank 0 reports, and the launcher ends
            # this process in the meantime.
            time.sleep(2)
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr, flush=True)
        if dist.is_initialized():
            os._exit(BAD_INPUT_STATUS)  # An ordinary exit can be aborted by threads of the group.
        sys.exit(BAD_INPUT_STATUS)


if __name__ == "__main__":
    main()
