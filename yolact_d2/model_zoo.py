"""Models by the names of their configs, like Detectron2's `model_zoo`.

A name is that of a file in configs/, with or without ".yaml": "yolact_R_50_FPN_550".
"""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .checkpoint import YOLACTCheckpointer
from .config import get_config_file, load_config
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
) -> CfgNode:
    """The config of a model, not frozen; see :func:`load_config`.

    Args:
        name: see :func:`names`.
        trained: set MODEL.WEIGHTS to the authors' trained weights. By default it names the weights
            that training starts from.
        weights: set MODEL.WEIGHTS to this file or URL.
        opts: alternating keys and values that override the file's.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if both `trained` and `weights` are given.
    """
    if trained and weights is not None:
        raise ValueError("trained=True and weights=... exclude each other: give one")
    cfg = load_config(get_config_file(name), opts)
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    elif weights is not None:
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
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    checkpointer = YOLACTCheckpointer(model)
    if trained or weights is not None:
        checkpointer.load(cfg.MODEL.WEIGHTS)
    else:
        checkpointer.warm_start(cfg.MODEL.WEIGHTS)  # a backbone
    return model
