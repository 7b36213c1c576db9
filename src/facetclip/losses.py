"""Cross-entropy over each attribute's value prompts, masked where the catalog is silent."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def label_targets(labels: Tensor, values: int) -> Tensor:
    """Bit masks [n] -> target distributions [n, values]: a cell's listed values share its weight equally; rows without
    a label are zero.

    >>> label_targets(torch.tensor([0b101, -1]), 3).tolist()
    [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    bits = (labels.clamp(min=0)[:, None] >> torch.arange(values, device=labels.device)) & 1
    return bits / bits.sum(dim=1, keepdim=True).clamp(min=1)


def attribute_losses(
    logits: Sequence[Tensor], labels: Tensor, multi_valued: Sequence[bool], *, smoothing: float = 0.0
) -> Tensor:
    """The summed cross-entropy of each attribute, [attributes]; divide by the global number of labels, not here.

    `logits`: per attribute [n, values]; `labels` [n, attributes]: value numbers, bit masks where `multi_valued`,
    negative where unlabelled or not applicable, which contribute nothing, to the gradient neither.
    """
    sums = [
        _summed(scores.float(), labels[:, place], multi, smoothing)
        for place, (scores, multi) in enumerate(zip(logits, multi_valued, strict=True))
    ]
    return torch.stack(sums)


def _summed(logits: Tensor, labels: Tensor, multi: bool, smoothing: float) -> Tensor:
    if not multi:
        return functional.cross_entropy(
            logits, labels.clamp(min=-1), ignore_index=-1, reduction="sum", label_smoothing=smoothing
        )
    targets = label_targets(labels, logits.shape[1])
    spread = targets * (1 - smoothing) + smoothing / logits.shape[1] * (labels >= 0)[:, None]
    return -(spread * functional.log_softmax(logits, dim=1)).sum()
