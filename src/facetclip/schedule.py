"""What depends on the step alone."""

import math


def due(step: int, every: int, *, last: int) -> bool:
    """Whether something done every `every` steps, and at the last, is to be done after step `step` (from 1).

    >>> [step for step in range(1, 8) if due(step, 3, last=7)]
    [3, 6, 7]
    """
    return step % every == 0 or step == last


def learning_rate(step: int, *, peak: float, final: float, warmup: int, steps: int) -> float:
    """The rate for step `step` (from 0): linear from peak/warmup up to `peak`, then half a cosine down to `final`.

    >>> [round(learning_rate(s, peak=1.0, final=0.0, warmup=2, steps=6), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
