from .checkpointer import TrainingCheckpointer
from .launch import check_devices, launch
from .train_loop import SkipNonFiniteTrainer
from .trainer import Trainer, broadcast_batch_norm_statistics

__all__ = [
    "SkipNonFiniteTrainer",
    "Trainer",
    "TrainingCheckpointer",
    "broadcast_batch_norm_statistics",
    "check_devices",
    "launch",
]
