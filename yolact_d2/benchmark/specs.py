"""Which models are to be measured: from the words of a command line to configs."""

import difflib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..config import load_config
from .anatomy import ARCHITECTURES

RANDOM_WEIGHTS = "random"
# A comma parts two overrides only where a key follows, so that values may be tuples.
_NEXT_OVERRIDE = re.compile(r",(?=[A-Z][A-Z0-9_.]*=)")


@dataclass(frozen=True)
class ModelSpec:
    """A model to be measured."""

    label: str
    """Its name in the tables."""
    config_file: str
    """Path of a YAML file."""
    opts: tuple[str, ...] = ()
    """Keys and values in turn, which override the file's."""
    weights: str = ""
    """A file or URL; empty means random."""

    @property
    def random(self) -> bool:
        return not self.weights

    def load(self) -> CfgNode:
        """The config. Its own weights, a backbone's as a rule, are not looked at."""
        cfg = load_config(self.config_file, self.opts)
        cfg.MODEL.WEIGHTS = self.weights
        return cfg


def find_config(name: str) -> str:
    """The file that a path, or a name in Detectron2's model zoo, means.

    Raises:
        ValueError: if there is none.
    """
    if not name.endswith((".yaml", ".yml")):
        raise ValueError(f"{name!r} is no YAML config; other kinds cannot be measured")
    if PathManager.isfile(name):
        return name
    try:
        return model_zoo.get_config_file(name)
    except RuntimeError:
        root = os.path.join(os.path.dirname(model_zoo.__file__), "configs")
        known = [os.path.relpath(p, root) for p in glob.glob(f"{root}/*/*.yaml")]
        close = difflib.get_close_matches(name, known) or ["COCO-InstanceSegmentation/..."]
        raise ValueError(
            f"there is no config file {name!r}, and none of that name in Detectron2's model zoo; "
            f"its names look like {', '.join(close)}"
        ) from None


def parse_model(text: str, opts: Sequence[str] = (), weights: str | None = None) -> ModelSpec:
    """Read "[LABEL=]CONFIG[:KEY=VALUE,KEY=VALUE...]".

    Args:
        text: CONFIG is a path or a name in the model zoo. The label is, by default, the file's name
            and the overrides.
        opts: overrides of all models, which those in `text` come after.
        weights: a file or URL, or "random". By default they are random unless MODEL.WEIGHTS is
            among the overrides.

    Raises:
        ValueError: naming what cannot be found or is not known.
    """
    head, _, tail = text.partition(":")
    label, _, name = head.rpartition("=")
    overrides = [part.partition("=") for part in _NEXT_OVERRIDE.split(tail)] if tail else []
    for key, equals, _ in overrides:
        if not equals:
            raise ValueError(f"{text!r}: {key!r} should be KEY=VALUE")
    config_file = find_config(name)
    if not label:
        # The last part of a key says enough.
        words = [f"{key.split('.')[-1]}={value}" for key, _, value in overrides]
        label = " ".join([os.path.splitext(os.path.basename(name))[0], *words])
    own = [word for key, _, value in overrides for word in (key, value)]
    return _checked(ModelSpec(label, config_file, (*opts, *own)), weights)


def _checked(spec: ModelSpec, weights: str | None) -> ModelSpec:
    """The spec with its weights, if its config can be read and is of a kind that is measured."""
    try:
        cfg = load_config(spec.config_file, spec.opts)
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(f"{spec.label}: {error.args[0]}") from error
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{spec.label}: MODEL.META_ARCHITECTURE is {architecture}; those that can be measured "
            f"are {', '.join(ARCHITECTURES)}"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(f"{spec.label}: a model that needs precomputed proposals, from no picture")

    if weights is None:
        weights = cfg.MODEL.WEIGHTS if "MODEL.WEIGHTS" in spec.opts[::2] else RANDOM_WEIGHTS
    if weights == RANDOM_WEIGHTS:
        weights = ""
    # What a URL leads to is only known once it is there.
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise ValueError(
            f"{spec.label}: there is no weights file {weights!r}; give a file, a URL or "
            f"{RANDOM_WEIGHTS!r}"
        )
    return ModelSpec(spec.label, spec.config_file, spec.opts, weights)


def check_device(name: str) -> None:
    """
    Raises:
        ValueError: if there is no such device.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ValueError(
            f"the device {name!r} should be such as 'cpu', 'cuda' or 'cuda:1'"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: torch finds no GPU; use 'cpu'")


def parse_models(
    texts: Sequence[str],
    weights: Sequence[str] = (),
    opts: Sequence[str] = (),
    device: str | None = None,
) -> list[ModelSpec]:
    """See :func:`parse_model`.

    Args:
        weights: none, or one for each of `texts`.
        device: MODEL.DEVICE of all models; by default what their configs say.

    Raises:
        ValueError: also where two models could not be told apart.
    """
    if weights and len(weights) != len(texts):
        raise ValueError(
            f"{len(weights)} weights for {len(texts)} configs; give one for each, "
            f"{RANDOM_WEIGHTS!r} for random ones"
        )
    if device is not None:
        check_device(device)
        opts = (*opts, "MODEL.DEVICE", device)
    specs = [
        parse_model(text, opts, weights[i] if weights else None) for i, text in enumerate(texts)
    ]
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two models are called {label!r}; name them with LABEL=CONFIG")
    return specs
