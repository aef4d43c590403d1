from .fit import CheckpointMismatch, check_weights, fit_state_dict, is_class_layer
from .names import from_official, to_official

__all__ = [
    "CheckpointMismatch",
    "check_weights",
    "fit_state_dict",
    "from_official",
    "is_class_layer",
    "to_official",
]
