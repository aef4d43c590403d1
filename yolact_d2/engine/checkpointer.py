"""Checkpoints of a run that may be killed at any moment."""

import os
import re
from typing import Any

import torch
from detectron2.utils import comm

from ..checkpoint import CheckpointMismatch, YOLACTCheckpointer, read_checkpoint
from ..files import atomic_write


class TrainingCheckpointer(YOLACTCheckpointer):
    """Checkpointer that writes files atomically and resumes from the last undamaged one.

    `save_dir` may be anything that Detectron2's PathManager knows. Only local writes are atomic.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and tag it as the last checkpoint.

        Args:
            kwargs: what to store beside the model and the checkpointables.

        Raises:
            CheckpointMismatch: if that is something other than tensors and plain values.
        """
        if not self.save_dir or not self.save_to_disk or self._is_remote():
            return super().save(name, **kwargs)
        data = {"model": self.model.state_dict()}
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_write(path) as partial:
            with open(partial, "wb") as file:
                try:
                    torch.save(data, file)
                except RuntimeError as error:  # torch hides the reason, such as a full disk
                    if isinstance(reason := error.__context__, OSError):
                        raise OSError(reason.errno, reason.strerror, path) from error
                    raise
                _flush_to_disk(file)
            read_checkpoint(partial)  # Fail now rather than when the run is resumed.
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if self._is_remote():
            return super().tag_last_checkpoint(last_filename_basename)
        path = os.path.join(self.save_dir, "last_checkpoint")
        with atomic_write(path) as partial, open(partial, "w") as file:
            file.write(last_filename_basename)
            _flush_to_disk(file)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last undamaged checkpoint of the run, if `resume` and there is one, with all
        checkpointables; otherwise start from the weights in `path`.

        Raises:
            CheckpointMismatch: naming the file, if it does not fit the model or the run.
        """
        last = self.last_undamaged() if resume else ""
        if not last:
            return self.warm_start(path)
        try:
            return self.load(last)
        except CheckpointMismatch:
            raise
        except (KeyError, ValueError) as error:  # from an optimizer with other parameters
            raise CheckpointMismatch(
                f"{last} is not of this run ({error}): give the options that it was started with"
            ) from error

    def last_undamaged(self) -> str:
        """The tagged checkpoint, or else that of the highest iteration; "" if there is none. All
        processes must call it; rank 0, which writes the checkpoints, decides.

        Raises:
            CheckpointMismatch: on all processes, if all checkpoints are damaged.
        """
        path = error = ""
        if comm.is_main_process():
            try:
                path = self._find_last_undamaged()
            except CheckpointMismatch as mismatch:
                error = str(mismatch)
        path, error = comm.all_gather((path, error))[0]
        if error:
            raise CheckpointMismatch(error)
        return path

    def _find_last_undamaged(self) -> str:
        if not self.path_manager.isdir(self.save_dir):
            return ""
        try:
            tagged = self.get_checkpoint_file()
        except UnicodeDecodeError:
            tagged = ""
        paths = [
            path
            for path in self.get_all_checkpoint_files()
            if path == tagged or re.fullmatch(r"model_(\d+|final)\.pth", os.path.basename(path))
        ]
        iterations, damaged = {}, []
        for path in sorted(paths, key=lambda path: path != tagged):
            try:
                checkpoint = read_checkpoint(self.path_manager.get_local_path(path))
            except CheckpointMismatch as error:
                self.logger.warning(f"{error}. An earlier checkpoint is used instead.")
                damaged.append(path)
                continue
            if {"iteration", *self.checkpointables} <= checkpoint.keys():  # else weights alone
                iterations[path] = checkpoint["iteration"]
                if path == tagged:
                    return path
        if damaged and not iterations:
            raise CheckpointMismatch(f"all checkpoints are damaged: {', '.join(damaged)}")
        return max(iterations, key=iterations.__getitem__, default="")

    def _is_remote(self) -> bool:
        return "://" in self.save_dir


def _flush_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
