#!/usr/bin/env python3
"""Train variants of a model on the same data with several seeds, and compare their AP.

The variants are in a YAML file, see tools/ablations/. Each run is a process of its own. Its result
is kept in OUTPUT/<variant>/<seed>/result.json, so a program that was stopped goes on where it was.
"""

import argparse
import gc
import json
import multiprocessing
import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import META_ARCH_REGISTRY

from yolact_d2 import load_config
from yolact_d2.engine import Trainer
from yolact_d2.files import atomic_write


class Run(NamedTuple):
    """A training run."""

    variant: str
    config_file: str
    opts: list[Any]
    """Config overrides: KEY VALUE ..."""
    folder: Path

    def config(self) -> str:
        """All keys, in which results are compared."""
        cfg = load_config(self.config_file, self.opts, keep_device=True)
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(f"{self.variant}: DATASETS.TEST must be one dataset")
        return cfg.dump()


class Detectron2Trainer(DefaultTrainer):
    """The trainer of Detectron2's own models."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
        return COCOEvaluator(dataset_name, output_dir=output_folder or cfg.OUTPUT_DIR)


def read_runs(path: str, seeds: list[int], output: Path, opts: list[str]) -> list[Run]:
    """The runs of a file of variants, seed by seed.

    The file has "config", the config file of all variants that have none of their own; "opts", a
    dict of config overrides that all variants share; and "variants", the dict of overrides of each
    variant, in which "config" is its config file.

    Args:
        opts: further overrides.

    Raises:
        ValueError: if that is not what the file has, or two runs would share a folder.
    """
    content = yaml.safe_load(Path(path).read_text())
    if not isinstance(content, dict) or set(content) - {"config", "opts", "variants"}:
        raise ValueError(f"{path} must have config, opts and variants only")
    shared, variants = content.get("opts") or {}, content.get("variants")
    if not variants or not isinstance(variants, dict):
        raise ValueError(f"{path} must have a dict of variants")
    if not all(isinstance(keys or {}, dict) for keys in (shared, *variants.values())):
        raise ValueError(f"{path}: opts and each variant must be a dict, KEY: VALUE")
    overridden = {*shared, *opts, *(key for own in variants.values() for key in own or {})}
    if overridden & {"SEED", "OUTPUT_DIR"}:
        raise ValueError("--seeds and --output set SEED and OUTPUT_DIR, not overrides")
    runs = []
    for seed in seeds:
        for name, own in variants.items():
            keys = {**shared, **(own or {})}
            config = keys.pop("config", content.get("config"))
            if not config:
                raise ValueError(f"{path}: {name} has no config")
            folder = output / str(name).replace("/", "-") / str(seed)
            overrides = [x for item in keys.items() for x in item] + opts
            overrides += ["SEED", seed, "OUTPUT_DIR", str(folder)]
            runs.append(Run(str(name), config, overrides, folder))
    folders = [run.folder for run in runs]
    for run in runs:
        if folders.count(run.folder) > 1:
            raise ValueError(f"{run.variant}: two runs have the folder {run.folder}")
    return runs


def train(run: Run, threads: int) -> None:
    """Train and evaluate in this process, and write result.json."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (log.txt has the same)
    torch.set_num_threads(threads)
    cfg = load_config(run.config_file, run.opts)
    cfg.freeze()
    default_setup(cfg, argparse.Namespace())
    is_ours = hasattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "config_node")
    trainer = (Trainer if is_ours else Detectron2Trainer)(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    metrics = trainer._last_eval_results
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    del trainer
    gc.collect()  # ends the workers of the loaders, whose time counts
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {
        "config": run.config(),
        "box_ap": metrics["bbox"]["AP"],
        "mask_ap": metrics["segm"]["AP"],
        "num_parameters": num_parameters,
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in usage),
    }
    with atomic_write(str(run.folder / "result.json")) as partial:
        Path(partial).write_text(json.dumps(result, indent=1))


def read_result(run: Run) -> dict[str, Any] | None:
    """The result of a run, None if it is missing or was made with another config."""
    path = run.folder / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    return result if result.get("config") == run.config() else None


def execute(run: Run, threads: int) -> dict[str, Any] | None:
    """The result of a run, which is trained in another process if there is none; None if it
    failed."""
    if read_result(run) is None:
        process = multiprocessing.get_context("spawn").Process(target=train, args=(run, threads))
        process.start()
        process.join()
    result = read_result(run)
    outcome = f"mask AP {result['mask_ap']:.2f}" if result else "FAILED"
    print(f"{run.variant}, {run.folder}: {outcome}", flush=True)
    return result


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(runs: list[Run], results: list[dict[str, Any] | None]) -> str:
    """A Markdown table: mean, least and largest AP of the seeds of each variant. The CPU time is
    that of the whole run, evaluation included."""
    lines = [
        "| variant | parameters | CPU minutes | box AP | mask AP |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run.variant for run in runs):
        of_variant = [x for run, x in zip(runs, results) if run.variant == name]
        own = [x for x in of_variant if x is not None]
        if len(own) < len(of_variant):
            name += f" ({len(own)} of {len(of_variant)} runs)"
        if own:
            millions = own[0]["num_parameters"] / 1e6
            minutes = np.mean([x["cpu_seconds"] for x in own]) / 60
            aps = [spread([x[key] for x in own]) for key in ("box_ap", "mask_ap")]
            lines.append(f"| {name} | {millions:.2f} M | {minutes:.1f} | {aps[0]} | {aps[1]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", help="YAML file")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")
    args = parser.parse_args()
    try:
        runs = read_runs(args.variants, args.seeds, args.output, args.opts)
        for run in runs:
            run.config()
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda run: execute(run, args.threads), runs))
    text = table(runs, results)
    (args.output / "table.md").write_text(text + "\n")
    print(text)
    return int(None in results)


if __name__ == "__main__":
    sys.exit(main())
