from . import builtin  # noqa: F401  registers the datasets
from .augmentation import build_augmentation
from .checks import check_datasets, check_on_each_machine
from .coco_dataset import COCODataset, use_coco_datasets
from .dataset_mapper import YOLACTDatasetMapper
from .images import UnreadableImage, read_image
from .loader import TrainLoader, build_test_loader, build_train_loader

__all__ = [
    "COCODataset",
    "TrainLoader",
    "UnreadableImage",
    "YOLACTDatasetMapper",
    "build_augmentation",
    "build_test_loader",
    "build_train_loader",
    "check_datasets",
    "check_on_each_machine",
    "read_image",
    "use_coco_datasets",
]
