"""A model and its optimizer as the launcher's engine holds them, behind one face."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facetclip.collectives import gather_whole, held_like


class Engine:
    """One process, DDP and FSDP2, which differ only in how a tensor is held. Every process calls every method."""

    def __init__(self, accelerator: Accelerator, reader: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator, self.reader = accelerator, reader
        accelerator.gradient_accumulation_steps = 1  # parts are ours, and their loss is a share of the whole already
        self.model: Any
        self.optimizer: Any
        self.model, self.optimizer = accelerator.prepare(reader, optimizer)
        if isinstance(self.model, DistributedDataParallel):
            # Buffers never change. Sent before each forward pass they would also be met by a process alone, where
            # another had no memory left for it.
            self.model.broadcast_buffers = False
        self.trained = {name: weight for name, weight in reader.named_parameters() if weight.requires_grad}
        self._parameters = list(self.model.parameters())  # a walk over a CLIP's modules takes as long as a probe's step

    @property
    def rearranges(self) -> bool:
        """Whether sums over processes round otherwise after the first backward pass than in it: DDP lays gradients out
        anew by the order in which they came, and where in a ring a number lies decides in which order it is summed."""
        return isinstance(self.model, DistributedDataParallel) and self.accelerator.num_processes > 2

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Forward and backward of one part of a batch; processes exchange gradients in the `last`."""
        sharing = nullcontext() if last else self.accelerator.no_sync(self.model)
        with sharing, self.accelerator.autocast():
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's share of the loss; they are summed over processes."""
        # Data parallelism averages gradients over processes; the loss is a sum over them.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def clip(self, limit: float) -> Tensor | None:
        """Shorten the gradient to `limit` (0: as it is); returns its norm before, no number where it has none. None
        where gradients that are no numbers are left to the scaler of fp16."""
        norm: Any = self.accelerator.clip_grad_norm_(self._parameters, limit or math.inf)
        return None if self.accelerator.scaler else norm

    @property
    def gradients(self) -> list[Tensor]:
        """What this process holds of them between `backward` and `update`."""
        return [weight.grad for weight in self._parameters if weight.grad is not None]

    def update(self, left_out: Tensor) -> None:
        """Change the weights, unless the number `left_out` is 1, and forget the gradients.

        The device looks at the number, by what torch's fused optimizers have for their scaler; the processor does not
        wait for it, but in fp16, where the scaler has a number of its own there.
        """
        scaler = self.accelerator.scaler
        if scaler is None:
            self.optimizer.optimizer.found_inf = left_out
        if scaler is not None and left_out.item():
            scaler.update()
        else:
            self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def gathered(self) -> AbstractContextManager[None]:
        """Within the block the reader's weights can be read, by `gather_whole`."""
        return nullcontext()

    def weights(self, *, keep: bool) -> dict[str, Tensor]:
        """The trained weights, whole, for those who `keep` them."""
        return gather_whole(self.trained, keep=keep)

    def optimizer_state(self, *, keep: bool) -> dict[str, Tensor]:
        """The optimizer's state as `PARAMETER.KEY`, whole; its settings are functions of the run and the step."""
        return gather_whole(optimizer_tensors(self.optimizer.optimizer, self.reader), keep=keep)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Go on from what `weights` and `optimizer_state` gave, under whichever engine."""
        for name, weight in self.trained.items():
            weight.copy_(held_like(weights[name], weight))
        restore_optimizer(self.optimizer.optimizer, self.reader, optimizer)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by name, `PARAMETER.KEY`."""
    return {
        f"{name}.{key}": value
        for name, weight in module.named_parameters()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, from whole tensors."""
    weights = dict(module.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        weight = weights[name]
        optimizer.state[weight][key] = held_like(value.to(weight.device), weight)
