"""Reads a COCO JSON and its images before anyone trains on them."""

from ..coco_json import read_coco
from .dataset import Inspection, inspect_dataset
from .defects import KINDS, Defect
from .report import format_defects, write_defects
from .statistics import collect_statistics, format_statistics

__all__ = [
    "KINDS",
    "Defect",
    "Inspection",
    "collect_statistics",
    "format_defects",
    "format_statistics",
    "inspect_dataset",
    "read_coco",
    "write_defects",
]
