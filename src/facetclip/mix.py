"""What mix of values a plan draws, in numbers and in words."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from facetclip.sampling import SamplingSpec, shares_of

SHORT = 0.9  # of its share: below, and by a whole draw at least, a value is reported


@dataclass(frozen=True)
class Short:
    """A value that is drawn less often than its share: `got` of `wanted`, carried by `items`; `why` not more often."""

    value: int
    got: float
    wanted: float
    items: int
    why: Literal["max_repeats", "other attributes"]


@dataclass(frozen=True)
class Mix:
    """One attribute in a plan: the share of each value among its labelled draws, by value number, and what is short."""

    attribute: str
    got: dict[int, float]
    short: tuple[Short, ...]


def plan_mix(labels: Mapping[str, np.ndarray], plan: np.ndarray, spec: SamplingSpec) -> list[Mix]:
    """What mix of values a plan has, attribute by attribute, and which values it draws too seldom."""
    mixes, drawn = [], plan.ravel()
    for name, column in labels.items():
        values, items = np.unique(column[column >= 0], return_counts=True)
        draws = (column[drawn][:, None] == values).sum(axis=0) if len(values) < 64 else _counted(column[drawn], values)
        if not draws.sum():
            continue
        got = draws / draws.sum()
        short: list[Short] = []
        if spec.strategy != "natural" and (not spec.over or name in spec.over):
            wanted = shares_of(items, spec.strategy)
            missed = (wanted - got) * draws.sum()
            for place in np.flatnonzero((got < SHORT * wanted) & (missed >= 1)).tolist():
                capped = wanted[place] * draws.sum() > spec.max_repeats * items[place]
                why: Literal["max_repeats", "other attributes"] = "max_repeats" if capped else "other attributes"
                share = (int(values[place]), float(got[place]), float(wanted[place]))
                short.append(Short(*share, items=int(items[place]), why=why))
        mixes.append(Mix(name, dict(zip(values.tolist(), got.tolist(), strict=True)), tuple(short)))
    return mixes


def _counted(column: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(values, column[column >= 0]), minlength=len(values))


def describe_mix(
    mixes: Sequence[Mix], names: Mapping[str, Sequence[str]], *, masks: Collection[str] = (), most: int = 8
) -> list[str]:
    """Lines for a person: each attribute's mix, of many values the most and least frequent ones, and what is short.

    `masks`: the attributes whose values are bit masks.

    >>> describe_mix([Mix("lid", {0: 0.75, 1: 0.25}, (Short(1, 0.25, 0.5, 3, "max_repeats"),))], {"lid": ["yes", "no"]})
    ['  lid: yes 75%, no 25%', '    no: 25% instead of 50%: carried by 3 photos, and max_repeats is reached']
    """
    lines = []
    for mix in mixes:
        called = partial(_name, names[mix.attribute], mask=mix.attribute in masks)
        ranked = sorted(mix.got.items(), key=lambda pair: -pair[1])
        shown = ranked if len(ranked) <= most else [*ranked[: most // 2], *ranked[-most // 2 :]]
        parts = [f"{called(value)} {share:.0%}" for value, share in shown]
        if len(ranked) > most:
            parts.insert(most // 2, f"{len(ranked) - most} others")
        lines.append(f"  {mix.attribute}: {', '.join(parts)}")
        for short in sorted(mix.short, key=lambda short: short.got / short.wanted)[:most]:
            why = "max_repeats is reached" if short.why == "max_repeats" else "other attributes forbid more"
            name = called(short.value)
            carried = f"carried by {short.items} photo{'' if short.items == 1 else 's'}"
            lines.append(f"    {name}: {short.got:.0%} instead of {short.wanted:.0%}: {carried}, and {why}")
    return lines


def _name(names: Sequence[str], value: int, *, mask: bool) -> str:
    """The value's name, or those of a bit mask's values."""
    if not mask:
        return names[value]
    return " + ".join(name for place, name in enumerate(names) if value >> place & 1)
