#!/usr/bin/env python3
"""Train and evaluate YOLACT with Detectron2's trainer."""

import argparse
import contextlib
import os
import sys

import yaml
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from yolact_d2 import load_config
from yolact_d2.checkpoint import check_weights_exist
from yolact_d2.data import COCODataset, check_on_each_machine, use_coco_datasets
from yolact_d2.engine import Trainer, TrainingCheckpointer, check_launch, launch

# yacs tells of a wrong key by a KeyError, of a wrong type by a ValueError, Detectron2 by asserting.
BAD_INPUT = (OSError, ValueError, KeyError, AssertionError, yaml.YAMLError)


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser()
    own = parser.add_argument_group("your own data, in COCO's format, in place of DATASETS")
    for split in ("train", "val"):
        own.add_argument(f"--{split}-json", metavar="FILE")
        own.add_argument(f"--{split}-images", metavar="DIR", help="where the file names start from")
    args = parser.parse_args()
    for split, data in zip(("train", "val"), own_data(args)):
        if data is None:
            continue
        if None in data:
            parser.error(f"--{split}-json and --{split}-images must be given together")
        if not os.path.isfile(data.json_file):
            parser.error(f"--{split}-json: there is no file {data.json_file!r}")
        if not os.path.isdir(data.image_root):
            parser.error(f"--{split}-images: there is no folder {data.image_root!r}")
    if args.eval_only and args.train_json and not args.val_json:
        parser.error("--eval-only evaluates on --val-json, which is missing")
    if args.val_json and not args.train_json and not args.eval_only:
        parser.error("--val-json needs --train-json, or --eval-only")
    return args


def own_data(args):
    """What to train and to evaluate on, each None if the command line does not say."""
    pairs = (args.train_json, args.train_images), (args.val_json, args.val_images)
    return [COCODataset(*pair) if any(pair) else None for pair in pairs]


def trained_with(cfg, args):
    """The config of the model that a run goes on with, None if there is none or it is not known."""
    if not (args.resume or args.eval_only):
        return None
    if cfg.MODEL.YOLACT.CLASS_NAMES:
        return cfg
    folder = cfg.OUTPUT_DIR if args.resume else os.path.dirname(cfg.MODEL.WEIGHTS)
    path = os.path.join(folder, "config.yaml")
    return load_config(path) if os.path.isfile(path) else None


@contextlib.contextmanager
def refused(*errors):
    """End with exit status 2 for what is wrong with the input, and say it once on each machine."""
    try:
        yield
    except errors as error:
        if comm.get_local_rank() == 0:
            # A KeyError's text is quoted.
            text = error.args[0] if isinstance(error, KeyError) else error
            print(f"{os.path.basename(__file__)}: error: {text}", file=sys.stderr)
        sys.exit(2)


def setup(args):
    """Build the config from the file and the command line, and set up what goes by it."""
    cfg = load_config(args.config_file, args.opts)
    train, val = own_data(args)
    if train or val:
        use_coco_datasets(cfg, train, val, trained_with=trained_with(cfg, args))
    cfg.freeze()
    if not args.resume:
        check_weights_exist(cfg.MODEL.WEIGHTS)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="yolact_d2")
    return cfg


def main(args):
    with refused(*BAD_INPUT):
        cfg = setup(args)

    if args.eval_only:
        with refused(OSError, ValueError):
            check_on_each_machine(cfg, "DATASETS.TEST")
            model = Trainer.build_model(cfg)
            TrainingCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
                cfg.MODEL.WEIGHTS, resume=args.resume
            )
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    with refused(OSError, ValueError):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = parse_args()
    with refused(*BAD_INPUT):
        device = load_config(args.config_file, args.opts).MODEL.DEVICE
        check_launch(args, device)
    launch(main, args, device)
