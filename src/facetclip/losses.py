"""Cross-entropy over each attribute's values, masked where the catalog is silent; photos contrasted with captions.

Both return sums over this process's rows; the caller divides by the count over the global batch, once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MOST_UNLIKELY = -1e4  # a logit that no softmax sees; finite, since 0 * inf would be no number


@dataclass(frozen=True)
class AttributeObjective:
    """How each attribute counts, in schema order.

    `weights`: what one label of it counts. `smoothing`: the part of a label that is spread over all values. `noise`:
    the share of labels taken to say anything at random ("forward correction", Patrini et al., "Making Deep Neural
    Networks Robust to Label Noise", 2017): a label that contradicts a sure model moves it little. `shifts`: added to
    its logits while training, None for nothing: tau times the log of how often each value is drawn, so that what is
    learned favours none (logit adjustment, Menon et al., "Long-tail learning via logit adjustment", 2021).
    """

    multi_valued: tuple[bool, ...]
    weights: tuple[float, ...]
    smoothing: float = 0.0
    noise: float = 0.0
    shifts: tuple[Tensor, ...] | None = None

    def on(self, device: torch.device) -> "AttributeObjective":
        """The same, where no step has to bring anything there."""
        return replace(self, shifts=self.shifts and tuple(each.to(device) for each in self.shifts))

    def count(self, labels: np.ndarray) -> float:
        """What the labels [n, attributes] weigh together: what the summed loss is to be divided by."""
        return float(((labels >= 0) * np.array(self.weights)).sum())

    def chance(self, priors: Sequence[Tensor], labels: np.ndarray) -> float:
        """The mean loss over `labels` [n, attributes] of a model that sees no photo and gives every one the same
        answer, `priors`: the logits of each attribute's values, by how often they are drawn."""
        answers = [each.expand(len(labels), -1) for each in priors]
        plain = replace(self, shifts=None, noise=0.0)
        summed = attribute_losses(answers, torch.from_numpy(labels), plain).sum()
        return float(summed) / (self.count(labels) or 1.0)


def listed(labels: Tensor, values: int) -> Tensor:
    """Bit masks [n] -> 1 for each value they list, float [n, values]; rows without a label are zero.

    >>> listed(torch.tensor([0b101, -1]), 3).tolist()
    [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    bits = (labels.clamp(min=0)[:, None] >> torch.arange(values, device=labels.device)) & 1
    return bits.float()


def attribute_losses(logits: Sequence[Tensor], labels: Tensor, objective: AttributeObjective) -> Tensor:
    """The summed and weighted loss of each attribute, [attributes].

    `logits`: per attribute [n, values]; `labels` [n, attributes]: value numbers, bit masks where multi-valued (a
    sigmoid for each value then, summed over values), negative where unlabelled or not applicable, which contribute
    nothing, to the gradient neither.
    """
    sums = []
    for place, scores in enumerate(logits):
        shift = 0.0 if objective.shifts is None else objective.shifts[place].to(scores.device)
        of_one = _many if objective.multi_valued[place] else _one
        sums.append(objective.weights[place] * of_one(scores.float() + shift, labels[:, place], objective))
    return torch.stack(sums)


def _one(logits: Tensor, labels: Tensor, objective: AttributeObjective) -> Tensor:
    told = functional.log_softmax(logits, dim=1)
    if objective.noise:
        told = _doubted(told, objective.noise, 1 / logits.shape[1])
    # Smoothing spreads a part of each label over all values.
    picked = told.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    each = (1 - objective.smoothing) * picked + objective.smoothing * told.mean(dim=1)
    return -(each * (labels >= 0)).sum()


def _many(logits: Tensor, labels: Tensor, objective: AttributeObjective) -> Tensor:
    targets = listed(labels, logits.shape[1]) * (1 - objective.smoothing) + objective.smoothing / 2
    yes, no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    if objective.noise:
        yes, no = _doubted(yes, objective.noise, 0.5), _doubted(no, objective.noise, 0.5)
    each = targets * yes + (1 - targets) * no
    return -(each * (labels >= 0)[:, None]).sum()


def _doubted(told: Tensor, noise: float, chance: float) -> Tensor:
    """log((1 - noise) * p + noise * chance) from log p."""
    return torch.logaddexp(told + math.log1p(-noise), told.new_full((), math.log(noise * chance)))


@dataclass(frozen=True)
class Pairing:
    """The photos and captions of the global batch, as one process sees them.

    `images` and `captions` [n, d]: unit features of all processes, in one order. `groups` int64 [n]: equal where
    captions are the same text, which makes every such pair a positive; negative where there is no caption: that photo
    takes no part. `mine`: this process's rows.
    """

    images: Tensor
    captions: Tensor
    groups: Tensor
    mine: slice


def contrastive_loss(pairing: Pairing, scale: Tensor, bias: Tensor, form: Literal["softmax", "sigmoid"]) -> Tensor:
    """The loss of this process's photos against all captions and of its captions against all photos, summed and halved.

    `softmax`: a row's target is spread over its positives (Radford et al. 2021; Khosla et al., "Supervised Contrastive
    Learning", 2020). `sigmoid`: every pair is judged by itself, with `bias` [1] (Zhai et al. 2023).
    """
    mine, known = pairing.groups[pairing.mine, None], pairing.groups[None, :] >= 0
    same = ((mine == pairing.groups[None, :]) & known).float()
    images, captions = pairing.images.float(), pairing.captions.float()
    with torch.autocast(images.device.type, enabled=False):  # of numbers up to 100 bf16 knows every half
        directions = (
            scale.float() * images[pairing.mine] @ captions.T,
            scale.float() * captions[pairing.mine] @ images.T,
        )
    if form == "sigmoid":
        paired = known & (mine >= 0)
        losses = [-(functional.logsigmoid((2 * same - 1) * (logits + bias)) * paired).sum() for logits in directions]
    else:
        targets = same / same.sum(dim=1, keepdim=True).clamp(min=1)
        told = [functional.log_softmax(logits.masked_fill(~known, MOST_UNLIKELY), dim=1) for logits in directions]
        losses = [-(targets * each).sum() for each in told]
    return torch.stack(losses).sum() / 2
