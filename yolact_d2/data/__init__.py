from . import builtin  # noqa: F401  registers the datasets
from .augmentation import build_augmentation
from .checks import check_datasets
from .dataset_mapper import YOLACTDatasetMapper

__all__ = ["YOLACTDatasetMapper", "build_augmentation", "check_datasets"]
