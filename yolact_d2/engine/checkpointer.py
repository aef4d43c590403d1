"""Checkpoints of a run that may be killed at any moment."""

import glob
import logging
import os
import re
from typing import Any, Dict, List

import torch
from detectron2.utils import comm

from ..checkpoint import CheckpointMismatch, YOLACTCheckpointer, read_checkpoint
from ..files import remove_partial_files, whole_file


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
        with whole_file(path) as partial:
            with open(partial, "wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
            # Before the file gets its name: then the tag never names one that is not the last.
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with whole_file(path) as partial, open(partial, "w") as file:
            file.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is any, damaged or not."""
        return bool(self._candidates())

    def get_checkpoint_file(self) -> str:
        """The last checkpoint that is there, "" if there is none."""
        return next(iter(self._candidates()), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """
        Args:
            path: where the weights come from, unless the run is resumed.
            resume: go on from the last whole checkpoint in `save_dir`, if there is any at all.

        Raises:
            CheckpointMismatch: if all checkpoints are damaged, or other processes do not see them.
        """
        checkpoint = self._last_whole() if resume else ""
        if checkpoint:
            return self.load(checkpoint)
        return self.load(path, checkpointables=[])

    def _last_whole(self) -> str:
        """What the main process takes for the last whole checkpoint, on all processes."""
        choice, error = "", None
        if comm.is_main_process():
            remove_partial_files(self.save_dir)
            try:
                choice = self._choose()
            except CheckpointMismatch as damaged:
                error = str(damaged)
        choice, error = comm.all_gather((choice, error))[0]
        if error:
            raise CheckpointMismatch(error)
        if not all(comm.all_gather(not choice or os.path.isfile(choice))):
            raise CheckpointMismatch(
                f"{choice} is not there for every process: OUTPUT_DIR must be on storage that all "
                "machines share"
            )
        return choice

    def _choose(self) -> str:
        candidates, damaged = self._candidates(), []
        for path in candidates:
            try:
                read_checkpoint(path)
            except CheckpointMismatch as error:
                logging.getLogger(__name__).warning(f"{error}. Trying the checkpoint before it.")
                damaged.append(path)
            else:
                return path
        if damaged:
            raise CheckpointMismatch(
                f"no checkpoint in {self.save_dir} is whole: {', '.join(damaged)}. Remove them to "
                "start anew"
            )
        return ""

    def _candidates(self) -> List[str]:
        """The checkpoints of the run that exist, the one to resume from first."""
        paths = [os.path.join(self.save_dir, "model_final.pth"), *self._numbered()]
        try:
            with open(os.path.join(self.save_dir, "last_checkpoint"), encoding="utf-8") as file:
                tagged = os.path.join(self.save_dir, file.read().strip())
        except (OSError, ValueError):  # none, or not text
            pass
        else:
            # A run that went on after its end has later ones than model_final.pth.
            paths = [tagged, *paths[1:], paths[0]]
        return [path for path in dict.fromkeys(paths) if os.path.isfile(path)]

    def _numbered(self) -> List[str]:
        """model_0000999.pth and the like, the last iteration first."""
        found = {}
        for path in glob.glob(os.path.join(glob.escape(self.save_dir), "model_*.pth")):
            match = re.fullmatch(r"model_(\d+)\.pth", os.path.basename(path))
            if match:
                found[path] = int(match[1])
        return sorted(found, key=found.get, reverse=True)
