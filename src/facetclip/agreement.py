"""What all processes must decide alike after a backward pass: one small sum over them.

Whether an update counts is decided on the device, and the optimizer there leaves it out (`Engine.update`): no processor
waits for it. What was decided is read some steps later, at steps that are the same for all processes.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from facetclip.collectives import processes, sum_over_processes, whole

WITHIN = 5.0  # seconds after which a step is read at the latest, or as soon as it is done where it takes longer


@dataclass(frozen=True)
class Verdict:
    """Of a step: which processes met a loss, or a gradient, that is no number; whether any was asked to stop; and
    whether the first one said that it is time to save."""

    step: int
    losses: tuple[int, ...]
    gradients: tuple[int, ...]
    stop: bool
    save: bool


class Agreement:
    """The verdicts on a run's steps, kept on the device until they are read.

    `most`: how many bad updates may be left out; from one more on nothing changes the weights any more.
    """

    def __init__(self, device: torch.device, *, most: int) -> None:
        self._most, self._bad = most, torch.zeros((), device=device)
        self._told: list[tuple[int, Tensor]] = []
        self._read, self._seconds, self._every = time.monotonic(), 0.0, 1

    def resume(self, bad: int) -> None:
        """So many bad updates were left out before."""
        self._bad.fill_(bad)

    def on(self, step: int, loss: Tensor, norm: Tensor | None, *, stop: bool, save: bool) -> Tensor:
        """1 on every process where the update is to be left out, else 0; a float on the device.

        `loss`: this process's share; `norm`: of its gradient, None where the engine looks after it.
        """
        rank, world = processes()
        told = torch.zeros(2 * world + 3, device=loss.device)
        told[rank] = ~loss.isfinite()
        if norm is not None:
            told[world + rank] = ~whole(norm).isfinite()
        told[2 * world] = stop
        if rank == 0:
            told[2 * world + 1], told[2 * world + 2] = save, self._seconds
        sum_over_processes(told)
        self._told.append((step, told))
        bad = told[: 2 * world].sum() > 0
        self._bad += bad
        return (bad | (self._bad > self._most)).float()

    @property
    def overdue(self) -> bool:
        """Whether WITHIN has passed since the last reading, as long as steps take as they did: no clock is looked at,
        so that all processes say the same. The first two steps are read as they come."""
        return len(self._told) >= self._every

    def read(self) -> list[Verdict]:
        """Those of the steps since the last reading, the same on every process; this waits for the device."""
        if not self._told:
            return []
        steps, told = zip(*self._told, strict=True)
        rows, now = torch.stack(told).tolist(), time.monotonic()
        self._told, self._read, self._seconds = [], now, (now - self._read) / len(rows)
        first_one_waited = rows[-1][-1]
        self._every = max(1, int(WITHIN / first_one_waited)) if first_one_waited else 1
        return [_verdict(step, row) for step, row in zip(steps, rows, strict=True)]


def _verdict(step: int, told: list[float]) -> Verdict:
    world = (len(told) - 3) // 2
    return Verdict(
        step=step,
        losses=tuple(rank for rank in range(world) if told[rank]),
        gradients=tuple(rank for rank in range(world) if told[world + rank]),
        stop=told[2 * world] > 0,
        save=told[2 * world + 1] > 0,
    )
