"""Signs that a training has gone wrong, and what to change. Plain numbers in, words out."""

import math
from typing import Any

GUESS = 0.98  # of the loss of a model that knows nothing
STUCK = 0.97  # of the loss one line before: it does not fall
SHRUNK = 0.98  # mean cosine between different photos
EARLIEST = 20  # steps past the warm-up before anything can be said


def collapse_alarm(loss: float, before: float, chance: float, likeness: float) -> str | None:
    """What is wrong and what to change, or None.

    `before`: the loss one line of the log earlier; `chance`: that of an answer that sees no photo, only how often
    each value is drawn (ln K for K values drawn equally often); `likeness`: the mean cosine between the features of
    different photos.

    >>> collapse_alarm(loss=0.4, before=0.5, chance=1.1, likeness=0.3) is None
    True
    """
    if likeness >= SHRUNK:
        return (
            f"the photos' features have shrunk together (mean cosine {likeness:.3f}): the model tells no photo from "
            "another; lower optimizer.lr (a tenth), lengthen optimizer.warmup_steps, or train less of it "
            '(tuning.mode = "lora" or "probe")'
        )
    if loss >= GUESS * chance and loss >= STUCK * before:
        return (
            f"the loss {loss:.3f} is that of a guess ({chance:.3f}): nothing is learned; raise optimizer.lr if it "
            "never fell, lower it if it fell before, and look at the labels with facetclip check"
        )
    return None


class CollapseAlarm:
    """`collapse_alarm` over the lines of a log: from the `begun`-th step and `EARLIEST` more on, and once."""

    def __init__(self, begun: int, chance: float) -> None:
        self._from, self._chance = begun + EARLIEST, chance
        self._before, self._given = math.inf, False

    def at(self, step: int, loss: float, likeness: float) -> str | None:
        """What is wrong by this line, if anything is and nothing was said yet."""
        before, self._before = self._before, loss
        if step < self._from or self._given:
            return None
        alarm = collapse_alarm(loss, before, self._chance, likeness)
        self._given = alarm is not None
        return alarm


def mean_cosine(summed_norm_squared: Any, photos: int) -> Any:
    """The mean cosine between different ones of `photos` unit features, from the squared norm of their sum
    (a number or a tensor).

    >>> mean_cosine(4.0, 2), mean_cosine(2.0, 2)
    (1.0, 0.0)
    """
    return (summed_norm_squared - photos) / max(1, photos * (photos - 1))
