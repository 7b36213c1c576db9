"""A moving average of the weights: steadier than the last ones, at the price of a copy (Polyak and Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from facetclip.collectives import held_like


class MovingAverage:
    """The exponential moving average of a module's trainable weights; none where `decay` is 0."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: w for name, w in module.named_parameters() if w.requires_grad} if decay else {}
        self.average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int, left_out: Tensor | float = 0.0) -> None:
        """Take in the weights after step `step` (from 1), unless `left_out` is 1; early averages forget faster, so that
        the start fades."""
        keep = min(self.decay, step / (step + 9))
        for name, weight in self._weights.items():
            self.average[name].lerp_(weight, (1 - keep) * (1 - left_out))

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Go on from a stored average; where none was kept, from the weights as they are."""
        for name, weight in self._weights.items():
            held = self.average[name]
            held.copy_(held_like(average[name], held) if average else weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            held = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(held)
