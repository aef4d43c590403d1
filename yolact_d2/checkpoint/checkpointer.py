"""Detectron2's checkpointer, for files of strangers."""

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from .reading import (
    CheckpointMismatch,
    model_arrays,
    read_checkpoint,
    read_zoo_checkpoint,
    refuse_pyth,
)


class YOLACTCheckpointer(DetectionCheckpointer):
    """Loads what :class:`DetectionCheckpointer` loads, of this or other models, but runs no code in
    it, and takes no more memory than a file is long. Files of pycls are refused.

    :meth:`load` raises :class:`CheckpointMismatch` for a file that is damaged, refused or does not
    fit; it names it.
    """

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except CheckpointMismatch as error:
            if path in str(error):
                raise
            raise CheckpointMismatch(f"{path}: {error}") from error
        finally:
            # Where an error leaves it set, nothing else could be loaded.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        refuse_pyth(filename)
        if filename.endswith(".pkl"):
            return read_zoo_checkpoint(filename)
        checkpoint = super()._load_file(filename)
        model_arrays(checkpoint, filename)
        return checkpoint

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)
