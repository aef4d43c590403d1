import logging
import weakref

from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import (
    TrainLoader,
    build_test_loader,
    build_train_loader,
    check_on_each_machine,
)
from ..evaluation import build_evaluator
from ..files import remove_partial_files
from .checkpointer import TrainingCheckpointer
from .guarded_step import GuardedTrainer
from .statistics import share_statistics


class Trainer(DefaultTrainer):
    """Detectron2's trainer for this project's data. It goes on exactly where it was stopped, and
    skips batches that would spoil the weights."""

    def __init__(self, cfg):
        """As Detectron2's, whose parts cannot be chosen. On a CPU too several processes work
        together.

        Raises:
            ValueError: naming what is wrong with the data, see :func:`check_datasets`, or with the
                config.
        """
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        keys = ["DATASETS.TRAIN", *(["DATASETS.TEST"] if cfg.DATASETS.TEST else [])]
        check_on_each_machine(cfg, *keys)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.checkpointer = TrainingCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            new_classes=cfg.MODEL.YOLACT.NEW_CLASSES,
            trainer=weakref.proxy(self),
        )
        on_cpu = {"device_ids": None} if model.device.type == "cpu" else {}
        self._trainer = GuardedTrainer(
            create_ddp_model(model, broadcast_buffers=False, **on_cpu),
            data_loader,
            optimizer,
            amp=cfg.SOLVER.AMP.ENABLED,
            seed=cfg.SEED if cfg.SEED >= 0 else None,
            max_skipped=cfg.SOLVER.MAX_SKIPPED,
            last_checkpoint=self.checkpointer.get_checkpoint_file,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last whole checkpoint of the run, or MODEL.WEIGHTS; see
        :class:`TrainingCheckpointer`."""
        if comm.is_main_process():
            remove_partial_files(self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.start_at(self.start_iter)
        elif self.start_iter > 0:
            logging.getLogger(__name__).warning(
                "The data loader is none of build_train_loader: it starts from its beginning."
            )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        share_statistics(model)
        return super().test(cfg, model, evaluators)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)
