from .checkpointer import SafeCheckpointer, YOLACTCheckpointer, check_weights_exist
from .names import from_official, to_official, translate
from .reading import CheckpointMismatch, read_checkpoint, read_state_dict

__all__ = [
    "CheckpointMismatch",
    "SafeCheckpointer",
    "YOLACTCheckpointer",
    "check_weights_exist",
    "from_official",
    "read_checkpoint",
    "read_state_dict",
    "to_official",
    "translate",
]
