#!/usr/bin/env python3
"""Train and evaluate YOLACT with Detectron2's trainer."""

import argparse
import os

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from yolact_d2 import load_config
from yolact_d2.data import Own, YOLACTDatasetMapper, check_datasets, use_own_data
from yolact_d2.evaluation import build_evaluator


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=YOLACTDatasetMapper(cfg))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return build_evaluator(cfg, dataset_name, output_folder)


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
    return [Own(*pair) if any(pair) else None for pair in pairs]


def trained_with(cfg, args):
    """The config of the model that a run goes on with, None if there is none or it is not known."""
    if not (args.resume or args.eval_only):
        return None
    if cfg.MODEL.YOLACT.CLASS_NAMES:
        return cfg
    folder = cfg.OUTPUT_DIR if args.resume else os.path.dirname(cfg.MODEL.WEIGHTS)
    path = os.path.join(folder, "config.yaml")
    return load_config(path) if os.path.isfile(path) else None


def setup(args):
    """Build the config from the file and the command line, and check the data it names."""
    cfg = load_config(args.config_file, args.opts)
    train, val = own_data(args)
    if train or val:
        use_own_data(cfg, train, val, trained_with=trained_with(cfg, args))
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="yolact_d2")
    if not args.eval_only:
        check_datasets(cfg, "DATASETS.TRAIN")
    if args.eval_only or cfg.DATASETS.TEST:
        check_datasets(cfg, "DATASETS.TEST")
    return cfg


def main(args):
    cfg = setup(args)

    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
