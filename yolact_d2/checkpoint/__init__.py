from .checkpointer import YOLACTCheckpointer
from .fit import check_weights, check_weights_exist, fit_state_dict, is_class_layer
from .names import from_official, to_official
from .reading import CheckpointMismatch, read_checkpoint

__all__ = [
    "CheckpointMismatch",
    "YOLACTCheckpointer",
    "check_weights",
    "check_weights_exist",
    "fit_state_dict",
    "from_official",
    "is_class_layer",
    "read_checkpoint",
    "to_official",
]
