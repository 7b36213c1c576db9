"""How much of a batch a process works on at a time."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch

from facetclip.collectives import sum_over_processes
from facetclip.errors import UserError

FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")  # other words for it


class Parts:
    """A share of a batch in parts of `size` photos, or where that is None in `count` parts."""

    def __init__(self, size: int | None) -> None:
        self.size, self.count = size, 1

    def of(self, photos: int) -> list[slice]:
        """The parts of so many photos.

        >>> Parts(3).of(7)
        [slice(0, 3, None), slice(3, 6, None), slice(6, 9, None)]
        """
        if self.size:
            return [slice(start, start + self.size) for start in range(0, photos, self.size)]
        bounds = [photos * number // self.count for number in range(self.count + 1)]
        return [slice(first, last) for first, last in pairwise(bounds)]

    def fit(self, work: Callable[[slice], object], least: int, most: int, device: torch.device) -> None:
        """As few parts, the same on every process, as `work` on the largest fits the memory in. `least`, `most`: the
        photos that processes have. UserError where not even one fits. All processes call it, and `work` talks to none.
        """
        while True:
            largest = max(self.of(most), key=lambda part: part.stop - part.start)
            turns = [largest] * min(2, self.count)  # the gradients of the first part lie beside the second
            failed = torch.tensor(float(not _fits(work, turns)), device=device)
            if not sum_over_processes(failed).item():
                return
            if self.count >= least:
                raise UserError("not even one photo fits the memory; set train.recompute, or take a smaller model")
            self.count = min(least, 2 * self.count)


def _fits(work: Callable[[slice], object], parts: Iterable[slice]) -> bool:
    try:
        for part in parts:
            work(part)
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as error:
        if not any(word in str(error) for word in FULL):
            raise
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def room_for(optimizer: torch.optim.Optimizer, weights: Iterable[torch.Tensor]) -> list[Any]:
    """As much memory as the optimizer will take with its first step; none where it has taken it."""
    return [] if optimizer.state else [torch.empty_like(weight) for weight in weights for _ in range(2)]
