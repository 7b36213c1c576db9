"""An epoch in windows: where the shards do not all fit the disk, only some of them are needed at a time.

An epoch's shards are shuffled and cut into windows. A global batch is drawn from one window, or where two meet from
both; its columns lie in the order of the window's shards. So a process that takes a run of neighbouring columns reads
few shards, and processes of one machine, whose runs are neighbours, read the same: a function of the plan alone,
whatever the number of processes is.
"""

import numpy as np


def shard_places(shards: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """int64 [n]: the place of each item's shard in a shuffled order of those that occur."""
    present, of = np.unique(shards, return_inverse=True)
    return random.permutation(len(present))[of]


def windows_of(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] twice: which window of at most `size` shards each item is in, and the place of its shard in that.

    >>> window, within = windows_of(np.array([0, 1, 2, 3, 4]), 2)
    >>> window.tolist(), within.tolist()
    ([0, 0, 1, 1, 2], [0, 1, 0, 1, 0])
    """
    count = int(places.max()) + 1
    windows = -(-count // size)
    window = places * windows // count
    return window, places - -(-window * count // windows)


def deal_in_windows(deck: np.ndarray, window: np.ndarray, batch: int, random: np.random.Generator) -> np.ndarray:
    """The draws of `deck` [steps * batch], sorted by label, as batches [batch, steps], window by window.

    `window` [draws]: of each draw. Every batch has the mix of labels of its window; what does not fill one at the end
    of a window is filled up from the next.
    """
    order = np.argsort(window, kind="stable")
    ends = np.cumsum(np.bincount(window))[:-1]
    batches: list[np.ndarray] = []
    begun: list[np.ndarray] = []
    for cards in np.split(deck[order], ends):
        missing = batch - sum(map(len, begun)) if begun else 0
        taken, cards = _spread(cards, min(missing, len(cards)))
        begun.append(taken)
        if sum(map(len, begun)) < batch and not len(cards):
            continue
        if missing:
            batches.append(np.concatenate(begun))
        steps, rest = divmod(len(cards), batch)
        taken, cards = _spread(cards, rest)
        batches += list(cards.reshape(batch, steps).T[random.permutation(steps)])
        begun = [taken] if rest else []
    return np.stack(batches, axis=1)


def _spread(cards: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` cards from places evenly over all of them, and the others."""
    chosen = np.zeros(len(cards), dtype=bool)
    chosen[(np.arange(count) * 2 + 1) * len(cards) // (2 * count or 1)] = True
    return cards[chosen], cards[~chosen]
