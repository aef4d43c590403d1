"""Names of the tensors in checkpoints of the authors' EmbedMask code."""

from itertools import product

from torch import Tensor

from .state_dict import StateDict, rename

PREFIXES = ("rpn.head.", "backbone.body.", "backbone.fpn.")
# Their frozen batch norm adds nothing to the variance, Detectron2's adds this.
_EPSILON = 1e-5


def _module_names() -> dict[str, str]:
    """The authors' modules and ours."""
    names = {
        "backbone.body.stem.conv1": "backbone.bottom_up.stem.conv1",
        "backbone.body.stem.bn1": "backbone.bottom_up.stem.conv1.norm",
        "backbone.fpn.top_blocks.p6": "backbone.top_block.p6",
        "backbone.fpn.top_blocks.p7": "backbone.top_block.p7",
        "rpn.head.cls_logits": "head.cls_score",
        "rpn.head.bbox_pred": "head.bbox_pred",
        "rpn.head.centerness": "head.ctrness",
        "rpn.head.position_scale": "head.position_scale",
    }
    for name in (
        *("proposal_spatial_embed", "proposal_other_embed", "proposal_margin"),
        *("pixel_spatial_embed", "pixel_other_embed"),
    ):
        names[f"rpn.head.{name}_pred"] = f"head.{name}_pred"
    for level in range(5):
        names[f"rpn.head.scales.{level}"] = f"head.scales.{level}"
        names[f"rpn.head.margin_scales.{level}"] = f"head.margin_scales.{level}"
    # Four convolutions, norms and ReLUs.
    for tower, i in product(("cls", "bbox", "mask"), range(12)):
        names[f"rpn.head.{tower}_tower.{i}"] = f"head.{tower}_subnet.{i}"
    for i in (2, 3, 4):
        names[f"backbone.fpn.fpn_inner{i}"] = f"backbone.fpn_lateral{i + 1}"
        names[f"backbone.fpn.fpn_layer{i}"] = f"backbone.fpn_output{i + 1}"
    # No stage of the networks has more than 23 blocks.
    for stage, block in product((1, 2, 3, 4), range(23)):
        theirs = f"backbone.body.layer{stage}.{block}"
        ours = f"backbone.bottom_up.res{stage + 1}.{block}"
        names[f"{theirs}.downsample.0"] = f"{ours}.shortcut"
        names[f"{theirs}.downsample.1"] = f"{ours}.shortcut.norm"
        for n in (1, 2, 3):
            names[f"{theirs}.conv{n}"] = f"{ours}.conv{n}"
            names[f"{theirs}.bn{n}"] = f"{ours}.conv{n}.norm"
    return names


OURS = _module_names()
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def from_official(state_dict: StateDict) -> StateDict:
    """Give the tensors of the authors' code this project's names. Unknown keys keep their names."""
    return rename(_add_to_variances(state_dict, -_EPSILON), OURS)


def to_official(state_dict: StateDict) -> StateDict:
    """The inverse of :func:`from_official`, up to rounding of the variances."""
    return rename(_add_to_variances(state_dict, _EPSILON), THEIRS)


def _add_to_variances(state_dict: StateDict, value: float) -> StateDict:
    def moved(key: str, x: Tensor) -> Tensor:
        return x + value if key.endswith(".running_var") else x

    return {key: moved(key, x) for key, x in state_dict.items()}
