"""Checkpoints of a run that may be killed at any moment."""

import glob
import os
import re
from typing import Any

import torch
from detectron2.utils import comm

from ..checkpoint import CheckpointMismatch, YOLACTCheckpointer, read_checkpoint
from ..files import atomic_write


class TrainingCheckpointer(YOLACTCheckpointer):
    """Writes files that are whole or not there at all, and resumes from the last whole one."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `name`.pth with the model, the checkpointables and `kwargs`, and tag it as the
        last. A process that is killed meanwhile leaves the files that were there before."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update((key, obj.state_dict()) for key, obj in self.checkpointables.items())
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        is_new = not os.path.exists(path)
        with atomic_write(path) as partial:
            _write(data, partial)
            # Better now than when it is needed.
            read_checkpoint(partial)
            if is_new:
                # A process that is killed between these two leaves a tag that names no file, for
                # which the last whole one is looked for.
                self.tag_last_checkpoint(f"{name}.pth")
        if not is_new:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(self._tag_file) as partial, open(partial, "w") as file:
            file.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is any, damaged or not."""
        return self.get_checkpoint_file() != ""

    def get_checkpoint_file(self) -> str:
        """The checkpoint that is named as the last, or else the last that is there; "" if there is
        none."""
        final = os.path.join(self.save_dir, "model_final.pth")
        paths = [self._tagged(), *self._numbered(), final]
        return next((path for path in paths if os.path.isfile(path)), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """
        Args:
            path: where the weights come from, unless the run is resumed.
            resume: go on from the last whole checkpoint in `save_dir`, if there is any at all.

        Raises:
            CheckpointMismatch: if all checkpoints are damaged or of another run, or if not all
                processes see them.
        """
        checkpoint = self._last_whole() if resume else ""
        if not checkpoint:
            return self.warm_start(path)
        try:
            return self.load(checkpoint)
        except CheckpointMismatch:
            raise
        except (KeyError, ValueError) as error:  # of optimizers that have other parameters
            raise CheckpointMismatch(
                f"{checkpoint} is not of this run ({error}): give the options that it was started "
                "with"
            ) from error

    def _last_whole(self) -> str:
        """What the main process takes for the last whole checkpoint, on all processes."""
        choice, error = "", None
        if comm.is_main_process():
            try:
                choice = self._choose()
            except CheckpointMismatch as damaged:
                error = str(damaged)
        choice, error = comm.all_gather((choice, error))[0]
        if error:
            raise CheckpointMismatch(error)
        agrees = os.path.isfile(choice) if choice else not self.has_checkpoint()
        if not all(comm.all_gather(agrees)):
            raise CheckpointMismatch(
                f"not every process sees the same checkpoints in {self.save_dir!r}: OUTPUT_DIR "
                "must be on storage that all machines share"
            )
        return choice

    def _choose(self) -> str:
        """The one that is named as the last, or else the whole one of the last iteration; "" if
        there is none, damaged or not."""
        reasons: list[str] = []
        tagged = self._tagged()
        if os.path.isfile(tagged) and self._iteration(tagged, reasons) is not None:
            return tagged
        found = {}
        final = os.path.join(self.save_dir, "model_final.pth")
        if final != tagged and os.path.isfile(final):
            found[final] = self._iteration(final, reasons)
        for path in self._numbered():
            if path != tagged:
                found[path] = self._iteration(path, reasons)
                if found[path] is not None:
                    break
        whole = [path for path, iteration in found.items() if iteration is not None]
        if not whole and reasons:
            raise CheckpointMismatch(f"no checkpoint can be resumed from: {'; '.join(reasons)}")
        return max(whole, key=found.get, default="")

    def _iteration(self, path: str, reasons: list[str]) -> int | None:
        """That of a whole checkpoint of a run; None, and one more of the reasons, for others."""
        try:
            checkpoint = read_checkpoint(path)
            missing = {"iteration", *self.checkpointables} - checkpoint.keys()
            if self.checkpointables and missing:
                raise CheckpointMismatch(
                    f"{path} has weights, but not what a run goes on with: {sorted(missing)}"
                )
        except CheckpointMismatch as error:
            reasons.append(str(error))
            self.logger.warning(f"{error}. It is passed over.")
            return None
        return checkpoint.get("iteration", -1)

    @property
    def _tag_file(self) -> str:
        return os.path.join(self.save_dir, "last_checkpoint")

    def _tagged(self) -> str:
        """The path that is named as the last, whatever is there; "" if none is."""
        try:
            with open(self._tag_file, encoding="utf-8") as file:
                name = file.read().strip()
        except (OSError, ValueError):  # there is none, or it is no text
            return ""
        return os.path.join(self.save_dir, name) if name and "\0" not in name else ""

    def _numbered(self) -> list[str]:
        """model_0000999.pth and the like, the last iteration first."""
        found = {}
        for path in glob.glob(os.path.join(glob.escape(self.save_dir), "model_*.pth")):
            match = re.fullmatch(r"model_(\d+)\.pth", os.path.basename(path))
            if match:
                found[path] = int(match[1])
        return sorted(found, key=found.get, reverse=True)


def _write(data: dict[str, Any], path: str) -> None:
    """Save, down to the disk.

    Raises:
        OSError: naming the file, if the disk is full.
    """
    with open(path, "wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:  # torch's, which does not say why
            if isinstance(error.__context__, OSError):
                reason = error.__context__
                raise OSError(reason.errno, reason.strerror, path) from error
            raise
        file.flush()
        os.fsync(file.fileno())
