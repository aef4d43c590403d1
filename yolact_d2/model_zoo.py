"""Models by the names of their configs, like Detectron2's `model_zoo`.

A name is that of a file in configs/, with or without ".yaml": "yolact_R_50_FPN_550"; or that of a
lazy config in configs/lazy/, with ".py".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from torch import nn

from .checkpoint import YOLACTCheckpointer
from .config import available_device, get_config_file, load_config
from .config import model_names as names

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "names"]

# The weights that the authors trained and published, see MODEL_ZOO.md.
_AUTHORS = "https://huggingface.co/dbolya"
_TRAINED = {
    "yolact_R_50_FPN_550": "yolact-resnet50/resolve/main/yolact_resnet50_54_800000.pth",
    "yolact_R_101_FPN_550": "yolact-base/resolve/main/yolact_base_54_800000.pth",
    "yolact_R_101_FPN_700": "yolact-im700/resolve/main/yolact_im700_54_800000.pth",
    "yolact_darknet53_FPN_550": "yolact-darknet53/resolve/main/yolact_darknet53_54_800000.pth",
    "yolact_plus_R_50_FPN_550": (
        "yolact-plus-resnet50/resolve/main/yolact_plus_resnet50_54_800000.pth"
    ),
    "yolact_plus_R_101_FPN_550": "yolact-plus-base/resolve/main/yolact_plus_base_54_800000.pth",
}


def get_checkpoint_url(name: str) -> str:
    """The URL of the weights that the authors trained.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the authors published no weights of it.
    """
    stem = Path(get_config_file(name)).stem
    if stem not in _TRAINED:
        raise ValueError(f"there are no trained weights of {stem!r}, only of {', '.join(_TRAINED)}")
    return f"{_AUTHORS}/{_TRAINED[stem]}"


def get_config(
    name: str,
    trained: bool = False,
    *,
    weights: str | None = None,
    opts: Sequence[str] = (),
) -> CfgNode | Any:
    """The config of a model, not frozen; see :func:`load_config`. That of a ".py" file is lazy.

    Args:
        name: see :func:`names`.
        trained: set MODEL.WEIGHTS (`train.init_checkpoint`) to the authors' trained weights. By
            default it names the weights that training starts from.
        weights: set MODEL.WEIGHTS (`train.init_checkpoint`) to this file or URL.
        opts: alternating keys and values that override the file's, of a lazy config "key=value".

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if both `trained` and `weights` are given.
    """
    if trained and weights is not None:
        raise ValueError("trained=True and weights=... exclude each other: give one")
    path = get_config_file(name)
    if trained:
        weights = get_checkpoint_url(name)
    if path.endswith(".py"):
        cfg = LazyConfig.apply_overrides(LazyConfig.load(path), [*opts])
        if weights is not None:
            cfg.train.init_checkpoint = weights
    else:
        cfg = load_config(path, opts)
        if weights is not None:
            cfg.MODEL.WEIGHTS = weights
    return cfg


def get(
    name: str,
    trained: bool = False,
    device: str | None = None,
    *,
    weights: str | None = None,
) -> nn.Module:
    """A model with its weights loaded, in training mode like those of Detectron2's `get`.

    Args:
        name, trained, weights: see :func:`get_config`.
        device: default: the config's, or the CPU if there is no GPU.
    """
    cfg = get_config(name, trained, weights=weights)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model, init = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, init = instantiate(cfg.model), cfg.train.init_checkpoint
        model.to(device or available_device(cfg.train.device))
    checkpointer = YOLACTCheckpointer(model)
    if trained or weights is not None:
        checkpointer.load(init)
    else:
        checkpointer.warm_start(init)  # a backbone
    return model
