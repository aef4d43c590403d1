from .checkpointer import TrainingCheckpointer
from .guarded_step import GuardedTrainer
from .launch import check_launch, launch
from .statistics import share_statistics
from .trainer import Trainer
from .watch import watch_ranks

__all__ = [
    "GuardedTrainer",
    "Trainer",
    "TrainingCheckpointer",
    "check_launch",
    "launch",
    "share_statistics",
    "watch_ranks",
]
