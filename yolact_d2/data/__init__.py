from . import builtin  # noqa: F401  registers the datasets
from .augmentation import build_augmentation
from .checks import check_datasets
from .dataset_mapper import YOLACTDatasetMapper
from .own import Own, use_own_data

__all__ = ["Own", "YOLACTDatasetMapper", "build_augmentation", "check_datasets", "use_own_data"]
