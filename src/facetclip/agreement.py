"""What all processes must decide alike between a backward pass and the update: one small sum over them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from facetclip.collectives import processes, sum_over_processes, whole


@dataclass(frozen=True)
class Verdict:
    """Which processes met a loss, or a gradient, that is no number; whether any was asked to stop; and whether the
    first one says that it is time to save."""

    losses: tuple[int, ...]
    gradients: tuple[int, ...]
    stop: bool
    save: bool


def agree(loss: Tensor, norm: Tensor | None, *, stop: bool, save: bool) -> Verdict:
    """The same verdict on every process. `loss`: this process's share; `norm`: of its gradient, None where the engine
    looks after it."""
    rank, world = processes()
    told = torch.zeros(2, world + 1, device=loss.device)
    told[0, rank] = ~loss.isfinite()
    if norm is not None:
        told[1, rank] = ~whole(norm).isfinite()
    told[0, world], told[1, world] = stop, save and rank == 0
    losses, gradients = sum_over_processes(told).tolist()
    return Verdict(
        losses=tuple(place for place in range(world) if losses[place]),
        gradients=tuple(place for place in range(world) if gradients[place]),
        stop=losses[world] > 0,
        save=gradients[world] > 0,
    )
