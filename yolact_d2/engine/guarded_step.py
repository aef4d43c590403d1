"""A training step that no batch can spoil the weights with."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class GuardedTrainer(SimpleTrainer):
    """Detectron2's training step, in full or in mixed precision. A batch whose loss or gradients
    are not finite is skipped, on all processes alike: it changes neither weights nor statistics.

    In mixed precision, gradients are the gradient scaler's affair, which lowers its scale.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool = False,
        seed: int | None = None,
        max_skipped: int = 10,
        last_checkpoint: Callable[[], str] = lambda: "",
    ):
        """
        Args:
            model: gives a dict of losses, on one device.
            data_loader: gives batches, lists of dicts with "file_name" and "image_id".
            amp: compute in float16, on a GPU.
            seed: what is random in the model depends only on it, on the process and on the
                iteration, so that a run that is resumed draws the same. None: on nothing.
            max_skipped: so many batches in a row may be skipped; then training stops.
            last_checkpoint: names the file to go back to, if there is one.
        """
        super().__init__(model, data_loader, optimizer)
        if amp and not torch.cuda.is_available():
            raise ValueError("SOLVER.AMP.ENABLED is True, but mixed precision needs a GPU")
        self.grad_scaler = torch.cuda.amp.GradScaler() if amp else None
        self.seed = seed
        self.max_skipped = max_skipped
        self.last_checkpoint = last_checkpoint
        self.num_skipped = 0
        self._skipped_in_a_row: list[str] = []
        self._checkpoint_before = ""  # the first of them

    def run_step(self) -> None:
        assert self.model.training, "the model is not in training mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.seed is not None:
            torch.manual_seed(step_seed(self.seed, comm.get_rank(), self.iter))
        # Batch norm takes up its statistics on the way forward.
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with torch.autocast("cuda", dtype=torch.float16, enabled=self.grad_scaler is not None):
            losses = self.model(data)
        total = sum(losses.values())

        # Either all processes go backward or none.
        if on_all_processes(total.isfinite()) and self._backward(total):
            self.after_backward()
            self._write_metrics(losses, data_time)
            self._update()
            self._skipped_in_a_row = []
        else:
            for buffer, before in buffers:
                buffer.copy_(before)
            self._skip(data, losses)

    def _backward(self, loss: Tensor) -> bool:
        """Compute the gradients; whether they can be used."""
        self.optimizer.zero_grad()
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            return True
        loss.backward()
        # They are the mean over all processes, so these agree.
        sums = [p.grad.sum() for p in self.model.parameters() if p.grad is not None]
        return bool(torch.stack(sums).isfinite().all())

    def _update(self) -> None:
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _skip(self, data: list[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        """Record a batch that was not used.

        Raises:
            FloatingPointError: if it is one too many; on all processes.
        """
        wrong = {k: v.item() for k, v in losses.items() if not v.isfinite()}
        everywhere = comm.all_gather((wrong, [image_name(x) for x in data]))
        # Gradients are summed over processes, so any image may be the reason.
        culprits = [part for part in everywhere if part[0]] or everywhere
        images = ", ".join(name for _, names in culprits for name in names)
        what = ", ".join(f"{k} is {v}" for part, _ in culprits for k, v in part.items())
        what = what or "the gradients are not finite"
        if not self._skipped_in_a_row:
            self._checkpoint_before = self.last_checkpoint()
        self.num_skipped += 1
        self._skipped_in_a_row.append(f"{images} ({what})")
        in_a_row = len(self._skipped_in_a_row)
        if comm.is_main_process():
            get_event_storage().put_scalar(
                "num_skipped_batches", self.num_skipped, smoothing_hint=False
            )
            logger.warning(
                f"Batch skipped at iteration {self.iter}: {what}. Its images are {images}. "
                f"{in_a_row} in a row, {self.num_skipped} in all."
            )
        if in_a_row >= self.max_skipped:
            checkpoint = self._checkpoint_before
            raise FloatingPointError(
                f"the losses or gradients of {in_a_row} batches in a row (SOLVER.MAX_SKIPPED) were "
                f"not finite, up to iteration {self.iter}. Their images: "
                f"{'; '.join(self._skipped_in_a_row)}. "
                + (
                    f"The last checkpoint before them is {checkpoint}"
                    if checkpoint
                    else "There is no checkpoint before them"
                )
            )

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["num_skipped"] = self.num_skipped
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.num_skipped = state_dict.get("num_skipped", 0)
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def on_all_processes(condition: Tensor) -> bool:
    """Whether a bool scalar is true on every process."""
    flag = condition.to(torch.int32)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """A seed for what one process draws in one step; another for each."""
    return int(np.random.SeedSequence([seed, rank, iteration]).generate_state(1, np.uint64)[0])


def image_name(x: dict[str, Any]) -> str:
    """Of a dict of the data loader, for people: its image id and its file."""
    known = [str(x[key]) for key in ("image_id", "file_name") if key in x]
    return ": ".join(known) or "unknown"
