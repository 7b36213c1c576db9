"""The update rules: AdamW, plain SGD (for parity), and Muon for the matrices of a model trained from scratch.

Muon: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), scaled as in Liu et al., "Muon is
Scalable for LLM Training" (2025), so that AdamW's learning rate serves both. torch.optim.Muon takes matrices alone and
orthogonalises in bfloat16, which processors without such instructions do some 50 times slower than float32.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facetclip.config import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the source
ITERATIONS = 5
MOMENTUM = 0.95


def build_optimizer(
    module: nn.Module, spec: Optimizer, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of `spec` over `module`'s trainable parameters; vectors, scalars and embeddings do not decay.

    `factors`: parameter -> what its rate is multiplied by (1 where not named); each group carries its own as `factor`.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            decays = weight.ndim >= 2 and not any(word in name for word in ("embedding", "logit_scale"))
            groups.setdefault(((factors or {}).get(name, 1.0), decays), []).append(weight)
    listed: list[dict[str, Any]] = [
        {
            "params": weights,
            "factor": factor,
            "lr": factor * (spec.lr or 0.0),
            "weight_decay": spec.weight_decay if decays else 0.0,
            "matrices": decays,
        }
        for (factor, decays), weights in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
    if spec.name == "sgd":
        return SGD(listed, {})
    if spec.name == "muon":
        return Muon(listed, betas=(0.9, spec.beta2))
    # One pass over the weights instead of ten: a third of the time on a processor.
    return torch.optim.AdamW(listed, betas=(0.9, spec.beta2), eps=1e-8, fused=True)


class SGD(torch.optim.Optimizer):
    """A step down the gradient. Like torch's fused optimizers, and unlike its SGD over sharded weights, it leaves the
    update out where its `found_inf` is 1, without asking the device."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure else None
        left_out = self.found_inf
        moving = 1.0 if left_out is None else 1 - left_out
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    usable = weight.grad if left_out is None else weight.grad.masked_fill(left_out > 0, 0.0)
                    direction = self._direction(weight, usable, group, moving)
                    if group["weight_decay"]:
                        weight.mul_(1 - moving * group["lr"] * group["weight_decay"])
                    weight.add_(direction if left_out is None else direction * moving, alpha=-group["lr"])
        return loss

    def _direction(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], moving: Tensor | float) -> Tensor:
        """Against which the weight moves; what is kept from step to step stays as it is where `moving` is 0."""
        return gradient


class Muon(SGD):
    """Muon for the groups marked `matrices`, AdamW for the others."""

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "matrices": False})

    def _direction(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], moving: Tensor | float) -> Tensor:
        rule = self._muon if group["matrices"] else self._adam
        return rule(weight, gradient, group, moving)

    def _muon(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], moving: Tensor | float) -> Tensor:
        state = self.state[weight]
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.lerp_(gradient, (1 - MOMENTUM) * moving)
        matrix = torch.lerp(gradient, momentum, MOMENTUM).reshape(len(weight), -1)
        return orthogonal(matrix).mul_(0.2 * max(matrix.shape) ** 0.5).view_as(weight)

    def _adam(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], moving: Tensor | float) -> Tensor:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["first"], state["second"] = torch.zeros_like(weight), torch.zeros_like(weight)
        beta1, beta2 = group["betas"]
        state["step"] += moving
        state["first"].lerp_(gradient, (1 - beta1) * moving)
        state["second"].lerp_(gradient.square(), (1 - beta2) * moving)
        steps = state["step"].clamp(min=1)  # 0 where the first of all was left out
        first = state["first"] / (1 - beta1**steps)
        second = state["second"] / (1 - beta2**steps)
        return first / (second.sqrt() + group["eps"])


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix: singular values between 0.7 and 1.2, by a Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = (wide.bfloat16() if wide.is_cuda else wide.float()) / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)
