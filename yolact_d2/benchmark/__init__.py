"""Measures detectors of Detectron2, this project's and others, side by side.

specs       which models; find their configs
pictures    what they are shown
anatomy     where the stages of each meta-architecture begin and end
planted     made-up objects, the same for all models
forcing     makes random weights fit for measuring
runner      a model, from BGR arrays to `Instances`
variants    ways to run a model, such as AMP
clock       time lines of stages
timing      taking turns; medians, percentiles, ratios
training    training iterations
memory      peak memory, in a process of its own
flops       GFLOPs
accuracy    AP
results     what was measured
report      tables, JSON, Markdown; plot draws it
suite       all of it in turn
ops         NMS and masks by themselves
"""

from .pictures import PictureSet, find_pictures, parse_size
from .report import render, write_report
from .specs import ModelSpec, parse_models
from .suite import Settings, Suite
from .training import TrainingSettings
from .variants import VARIANTS, check_variant

__all__ = [
    "ModelSpec",
    "PictureSet",
    "Settings",
    "Suite",
    "TrainingSettings",
    "VARIANTS",
    "check_variant",
    "find_pictures",
    "parse_models",
    "parse_size",
    "render",
    "write_report",
]
