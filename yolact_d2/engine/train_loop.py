"""The training step."""

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)


class SkipNonFiniteTrainer(SimpleTrainer):
    """Training step that skips batches with non-finite losses or gradients.

    A skipped batch changes neither weights, nor momentum, nor batch norm statistics, on any
    process. In float16, non-finite gradients are left to the gradient scaler, which skips the
    update and lowers its scale.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        averaged_model: AveragedModel | None = None,
        seed: int | None = None,
        max_skipped: int = 10,
    ):
        """
        Args:
            model: returns a dict of scalar losses.
            data_loader: yields batches, lists of dicts with "file_name" and "image_id".
            amp_dtype: train in mixed precision, float16 (on a GPU) or bfloat16. None: in float32.
            averaged_model: of the model. It is updated after each step.
            seed: reseeds PyTorch before each iteration, from the seed, the rank and the iteration,
                so that a resumed run draws the same numbers. None: never.
            max_skipped: number of batches skipped in a row that stops training.

        Raises:
            ValueError: if `amp_dtype` is float16 and the model is not on a GPU.
        """
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        if amp_dtype == torch.float16 and self.device_type == "cpu":
            raise ValueError(
                "SOLVER.AMP.ENABLED is True, but float16 needs a GPU; SOLVER.AMP.DTYPE bfloat16 "
                "does not"
            )
        self.amp_dtype = amp_dtype
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )
        self.averaged_model = averaged_model
        self.seed = seed
        self.max_skipped = max_skipped
        self.num_skipped = 0
        self._skipped_in_a_row: list[str] = []

    def run_step(self) -> None:
        """Train on one batch, or skip it.

        Raises:
            FloatingPointError: on all processes, after `max_skipped` skipped batches in a row.
        """
        assert self.model.training, "the model is in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.seed is not None:
            torch.manual_seed(step_seed(self.seed, comm.get_rank(), self.iter))
        # Batch norm updates its statistics in the forward pass.
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model(data)
        total = sum(losses.values())

        # Either all processes run the backward pass or none: DDP would wait for the others.
        if on_all_processes(total.isfinite()) and self._backward(total):
            self.after_backward()
            self._write_metrics(losses, data_time)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            if self.averaged_model is not None:
                self.averaged_model.update_parameters(unwrapped(self.model))
            self._skipped_in_a_row = []
        else:
            for buffer, before in buffers:
                buffer.copy_(before)
            self._skip(data, losses)

    def _backward(self, loss: Tensor) -> bool:
        """Compute the gradients; return whether they can be used."""
        self.optimizer.zero_grad()
        self.grad_scaler.scale(loss).backward()
        if self.grad_scaler.is_enabled():
            return True
        # DDP has averaged them, so all processes find the same.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return bool(nn.utils.get_total_norm(gradients).isfinite())

    def _skip(self, data: list[dict[str, Any]], losses: dict[str, Tensor]) -> None:
        """Count and log a skipped batch; stop if there are too many."""
        wrong = [f"{key} is {loss.item()}" for key, loss in losses.items() if not loss.isfinite()]
        images = [f"{x.get('image_id')}: {x.get('file_name')}" for x in data]
        by_rank = comm.all_gather((wrong, images))
        # The gradients are averaged over processes: then any image may be the cause.
        causes = [part for part in by_rank if part[0]] or by_rank
        what = ", ".join(x for part in causes for x in part[0]) or "the gradients are not finite"
        where = ", ".join(x for part in causes for x in part[1])
        self.num_skipped += 1
        self._skipped_in_a_row.append(f"{where} ({what})")
        num_in_a_row = len(self._skipped_in_a_row)
        if comm.is_main_process():
            get_event_storage().put_scalar(
                "num_skipped_batches", self.num_skipped, smoothing_hint=False
            )
            logger.warning(
                f"Batch skipped at iteration {self.iter}: {what}. Its images: {where}. "
                f"Skipped in a row: {num_in_a_row}, in all: {self.num_skipped}."
            )
        if num_in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f"{num_in_a_row} batches in a row (SOLVER.MAX_SKIPPED), up to iteration "
                f"{self.iter}, had non-finite losses or gradients. Their images: "
                f"{'; '.join(self._skipped_in_a_row)}"
            )

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["num_skipped"] = self.num_skipped
        state["grad_scaler"] = self.grad_scaler.state_dict()
        if self.averaged_model is not None:  # which is saved as the model
            state["trained_model"] = unwrapped(self.model).state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # A checkpoint of Detectron2's trainer, or one without mixed precision, lacks these.
        self.num_skipped = state_dict.get("num_skipped", 0)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if "trained_model" in state_dict:
            unwrapped(self.model).load_state_dict(state_dict["trained_model"])
        elif self.averaged_model is not None:
            self.start_from_average()
        if self.averaged_model is not None:
            self.averaged_model.n_averaged.fill_(1)

    def start_from_average(self) -> None:
        """Load the weights of the averaged model into the trained one."""
        assert self.averaged_model is not None
        unwrapped(self.model).load_state_dict(self.averaged_model.module.state_dict())


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without `DistributedDataParallel`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def on_all_processes(condition: Tensor) -> bool:
    """Return whether a bool scalar is true on every process."""
    flag = condition.to(torch.int32)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)


def step_seed(seed: int, rank: int, iteration: int) -> int:
    """Return a seed, 0 to 2**64 - 1, for one iteration of one process."""
    return int(np.random.SeedSequence([seed, rank, iteration]).generate_state(1, np.uint64)[0])
