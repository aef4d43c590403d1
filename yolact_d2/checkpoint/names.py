"""Translate state dicts between the names of other people's checkpoints and this project's."""

import re

from . import embedmask_names, yolact_names
from .state_dict import StateDict, rename

_OUR_PREFIXES = ("backbone.bottom_up.", "backbone.fpn_", "head.", "protonet.")
_AUTHORS = (yolact_names, embedmask_names)


def translate(state_dict: StateDict) -> StateDict:
    """Give the tensors of a checkpoint this project's names.

    Args:
        state_dict: under this project's names, or those of the authors' code, of the backbone
            files that the authors train from, or of torchvision's ResNets; with or without a
            prefix, see :func:`without_prefix`. Unknown names stay as they are.
    """
    state_dict = without_prefix(state_dict)
    if any(key.startswith(_OUR_PREFIXES) for key in state_dict):
        return dict(state_dict)  # a subclass may have any other names beside them
    if is_official(state_dict):
        return from_official(state_dict)
    return from_plain_backbone(state_dict) if is_plain_backbone(state_dict) else state_dict


def without_prefix(state_dict: StateDict) -> StateDict:
    """Remove a prefix that all names share, such as DataParallel's "module.", Lightning's "model."
    or torch.compile's "_orig_mod.", if known names follow. Beside "model." and "module." there may
    be other names, such as those of a loss, which are left out."""
    for prefix in () if _is_known(state_dict) else ("model.", "module."):
        inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if _is_known(inside):
            return inside
    shorter = state_dict
    while not _is_known(shorter):
        modules = {key.partition(".")[0] for key in shorter}
        if len(modules) != 1 or modules & shorter.keys():
            return state_dict
        shorter = {key.partition(".")[2]: value for key, value in shorter.items()}
    return shorter


def _is_known(state_dict: StateDict) -> bool:
    return (
        any(key.startswith(_OUR_PREFIXES) for key in state_dict)
        or is_official(state_dict)
        or is_plain_backbone(state_dict)
    )


def is_official(state_dict: StateDict) -> bool:
    """Whether any tensor has a name that only the authors' code of a model has."""
    return any(key.startswith(names.PREFIXES) for names in _AUTHORS for key in state_dict)


def is_plain_backbone(state_dict: StateDict) -> bool:
    """Whether the tensors have the names of torchvision's ResNets, or of the backbone files that
    the authors train from."""
    return any(re.match(r"(layer\d|layers\.\d|_preconv)\.", key) for key in state_dict)


def from_official(state_dict: StateDict) -> StateDict:
    """Give the tensors of the authors' YOLACT or EmbedMask code this project's names. Unknown keys
    keep their names."""
    is_embedmask = any(key.startswith(embedmask_names.PREFIXES) for key in state_dict)
    return (embedmask_names if is_embedmask else yolact_names).from_official(state_dict)


def to_official(state_dict: StateDict) -> StateDict:
    """The inverse of :func:`from_official`."""
    return (embedmask_names if is_embedmask(state_dict) else yolact_names).to_official(state_dict)


def is_embedmask(state_dict: StateDict) -> bool:
    """Whether tensors with this project's names are of an EmbedMask."""
    return any(key.startswith("head.mask_subnet.") for key in state_dict)


def from_plain_backbone(state_dict: StateDict) -> StateDict:
    """Give the tensors of a backbone file this project's names, and leave out its classifier."""
    official = {}
    for key, value in state_dict.items():
        if not key.startswith("fc."):
            # torchvision counts stages from 1
            key = re.sub(r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}", key)
            official[f"backbone.{key}"] = value
    return rename(official, yolact_names.OURS)


def unknown_keys(state_dict: StateDict) -> list[str]:
    """Keys that neither the authors' code nor this project has."""
    modules = {name for names in _AUTHORS for name in (*names.OURS, *names.THEIRS)}
    return [key for key in state_dict if key.rpartition(".")[0] not in modules]
