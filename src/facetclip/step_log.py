"""What the steps since the last line of the log measured."""

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class StepLog:
    """What the steps since the last line measured; tensors stay on the device until they are read."""

    def __init__(self) -> None:
        self.measured: list[Tensor] = []
        self.restart()

    def restart(self) -> None:
        """Start the clock anew: what came before is not training."""
        self.started, self.timed = time.perf_counter(), 0

    def add(self, loss: Tensor, likeness: Tensor) -> None:
        """This process's share of one step's loss, and the mean cosine between its photos."""
        self.measured.append(torch.stack([loss, likeness]))
        self.timed += 1

    def take(self, accelerator: Accelerator, batch: int) -> tuple[dict[str, float], float]:
        """Loss and images per second, and the mean cosine between photos, since the last line and the same on every
        process."""
        summed: Any = accelerator.reduce(torch.stack(self.measured).mean(dim=0), reduction="sum")
        loss, likeness = summed.tolist()
        seconds = time.perf_counter() - self.started
        values = {"train/loss": loss, "train/images_per_second": batch * self.timed / max(seconds, 1e-9)}
        self.measured = []
        self.restart()
        return values, likeness / accelerator.num_processes
