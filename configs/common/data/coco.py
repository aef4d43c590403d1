"""Detectron2's loaders of COCO with this project's mapper and evaluator."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.model_zoo import get_config

from yolact_d2.data import YOLACTDatasetMapper, build_augmentation
from yolact_d2.evaluation import InstanceCOCOEvaluator

yolact = get_config("common/data/coco.py").dataloader
yolact.train.mapper = L(YOLACTDatasetMapper)(
    is_train=True,
    augmentations=L(build_augmentation)(
        image_size="${model.image_size}", image_format="${..image_format}"
    ),
    image_format="${model.input_format}",
    min_box_size=4.0,
)
yolact.train.total_batch_size = 8
yolact.test.mapper = L(YOLACTDatasetMapper)(
    is_train=False,
    augmentations=[],  # the model resizes
    image_format="${model.input_format}",
)
yolact.evaluator = L(InstanceCOCOEvaluator)(dataset_name="${..test.dataset.names}")

embedmask = get_config("common/data/coco.py").dataloader
embedmask.train.mapper = L(YOLACTDatasetMapper)(
    is_train=True,
    augmentations=[
        L(T.ResizeShortestEdge)(short_edge_length=(800,), max_size=1333, sample_style="choice"),
        L(T.RandomFlip)(),
    ],
    image_format="${model.input_format}",
)
embedmask.train.total_batch_size = 16
embedmask.test.mapper = L(YOLACTDatasetMapper)(
    is_train=False,
    augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
    image_format="${model.input_format}",
)
embedmask.evaluator = L(InstanceCOCOEvaluator)(dataset_name="${..test.dataset.names}")
