"""When a challenger takes the champion's place: rules over numbers, without a registry or a file.

Both models answered the same items, so their numbers are compared draw by draw (`intervals`). A challenger has to be
shown not to be worse than a margin in any attribute, by the lower end of the difference's 95% interval (non-inferiority
as in clinical trials: Piaggio et al., JAMA 2012), and to be better on the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from facetclip.intervals import FEWEST_PRODUCTS, Estimate, Tally, among, draws, estimate, mean_draws, numbers_of

MEASURE = "macro_f1"
RECALL = "balanced_accuracy"  # which items of values that one of two does not know have no part in
KEPT = "accuracy"  # what is measured on other shards


@dataclass(frozen=True)
class Examined:
    """What a model answered on one split, as far as models are compared by it; `digest` is the model's, `data_digest`
    the shards'. `unlabelled`: attributes of which the split says nothing. `unknown`: attribute -> the values that the
    data has and the model does not know, by their places. `kept`: what it answered on other shards, by their prompts
    alone, None where nobody asked."""

    digest: str
    split: str
    items: int
    data_digest: str
    tallies: Mapping[str, Tally]
    unlabelled: tuple[str, ...] = ()
    unknown: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    kept: "Examined | None" = None


@dataclass(frozen=True)
class Policy:
    """What a challenger has to show, in macro-F1 on the test split. `margin`: by how much no attribute may be worse;
    `gain`: what the mean has to be better by; `least`: labelled products that every attribute needs; `most_lost`: by
    how much the zero-shot accuracy on other shards may fall. The differences are lower ends of 95% intervals."""

    margin: float = 0.05
    gain: float = 0.0
    least: int = FEWEST_PRODUCTS
    most_lost: float = 0.02


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes the champion, and why; `challenger` and `champion` are the versions compared, and
    `differences` what the challenger's macro-F1 has more than the champion's, of each attribute; `mean` of them all;
    `kept`: of the accuracy on other shards."""

    promote: bool
    reason: str
    challenger: str | None = None
    champion: str | None = None
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    mean: Estimate | None = None
    kept: Estimate | None = None


def decide(challenger: Examined, champion: Examined | None, policy: Policy) -> Decision:
    """Whether `challenger` is to follow `champion`. Whatever is missing or is no number refuses.

    Attributes that the champion does not read count neither way. Values that it does not know, since they are new or
    have another name, it never reads, which counts in the mean; the margin is then of the mean recall of all others.
    """
    refusal = _unusable(challenger, "challenger") or _lacking(challenger) or _too_few(challenger, policy.least)
    if champion is not None:
        refusal = refusal or _unusable(champion, "champion") or _incomparable(challenger, champion)
    if refusal:
        return Decision(False, refusal)
    if champion is None:
        return Decision(True, f"there is no champion yet; mean macro-F1 {mean_number(challenger):.4f}")
    return _compared(challenger, champion, policy)


def mean_number(examined: Examined) -> float:
    """The mean macro-F1 over the attributes."""
    return float(np.mean([numbers_of(each)[MEASURE] for each in examined.tallies.values()]))


def _compared(challenger: Examined, champion: Examined, policy: Policy) -> Decision:
    (our_mean, their_mean), differences = _differences(challenger, champion)
    mean, kept = estimate(our_mean - their_mean), _kept(challenger, champion)
    against = [
        f"{name} may be worse by more than {policy.margin:g}: {told(difference)}"
        for name, difference in differences.items()
        if not difference.low >= -policy.margin
    ]
    if not mean.low > policy.gain:
        more = f"more than {policy.gain:g} " if policy.gain else ""
        against.append(f"not shown to be {more}better on the mean: {told(mean)}")
    if kept is not None and not kept.low >= -policy.most_lost:
        against.append(f"on other shards it may have lost more than {policy.most_lost:g}: {told(kept)}")
    numbers = f"mean macro-F1 {our_mean[0]:.4f}, the champion's is {their_mean[0]:.4f}"
    reason = "; ".join([*against, numbers]) if against else f"{numbers}: {told(mean)}"
    return Decision(not against, reason, differences=differences, mean=mean, kept=kept)


def _differences(challenger: Examined, champion: Examined) -> tuple[list[np.ndarray], dict[str, Estimate]]:
    """Both means in every draw, the challenger's first, and what it has more in each attribute."""
    names = list(champion.tallies)
    whole = [{name: each.tallies[name] for name in names} for each in (challenger, champion)]
    lacking = {name: new for name, new in champion.unknown.items() if name in champion.tallies}
    known = [{name: _without(each[name], new) for name, new in lacking.items()} for each in whole]
    ours, theirs, our_known, their_known = draws([*whole, *known])
    differences = {
        name: our_known[name][RECALL] - their_known[name][RECALL]
        if name in lacking
        else ours[name][MEASURE] - theirs[name][MEASURE]
        for name in names
    }
    means = [mean_draws(each)[MEASURE] for each in (ours, theirs)]
    return means, {name: estimate(drawn) for name, drawn in differences.items()}


def told(difference: Estimate) -> str:
    """A difference for a person.

    >>> told(Estimate(0.05, -0.012, 0.1))
    '+0.0500 (95% interval -0.0120 to +0.1000)'
    """
    return f"{difference.value:+.4f} (95% interval {difference.low:+.4f} to {difference.high:+.4f})"


def _kept(challenger: Examined, champion: Examined) -> Estimate | None:
    """How the accuracy on other shards has changed, on the mean over their attributes."""
    if challenger.kept is None or champion.kept is None:
        return None
    ours, theirs = (mean_draws(each)[KEPT] for each in draws([challenger.kept.tallies, champion.kept.tallies]))
    return estimate(ours - theirs)


def _unusable(examined: Examined, role: str) -> str | None:
    """Why what a model answered cannot be compared with anything."""
    for part, where in ((examined, ""), (examined.kept, " on other shards")):
        if part is None:
            continue
        if not part.tallies:
            return f"no attribute of the {role} was measured{where}"
        broken = [name for name, each in part.tallies.items() if not np.isfinite(each.sums).all()]
        if broken:
            return f"the {role}'s numbers of {_listed(broken)} are no numbers{where}"
    return None


def _without(each: Tally, unknown: Mapping[int, str]) -> Tally:
    return among(each, [place for place in range(each.values) if place not in unknown])


def _lacking(challenger: Examined) -> str | None:
    """Why the challenger was trained on other data than it is measured on."""
    values = [f"{value!r} of {name}" for name, each in challenger.unknown.items() for value in each.values()]
    return f"the challenger does not know {_listed(values)}, which the data lists" if values else None


def _too_few(examined: Examined, least: int) -> str | None:
    """Why the split says too little."""
    labelled = {name: each.products for name, each in examined.tallies.items()} | dict.fromkeys(examined.unlabelled, 0)
    few = [f"{name} of {products}" for name, products in labelled.items() if products < least]
    return f"too few labelled products to judge by, {least} are wanted: {', '.join(few)}" if few else None


def _incomparable(challenger: Examined, champion: Examined) -> str | None:
    """Why two models' answers cannot be compared with each other."""
    if challenger.digest == champion.digest:
        return "the challenger is the champion's own model"
    if (challenger.kept is None) != (champion.kept is None):
        return "only one of them was measured on other shards"
    pairs = [(challenger, champion)]
    if challenger.kept is not None and champion.kept is not None:
        pairs.append((challenger.kept, champion.kept))
    for ours, theirs in pairs:
        for name in ("split", "data_digest", "items"):
            if getattr(ours, name) != getattr(theirs, name):
                return f"measured on different data: {name} {getattr(ours, name)} and {getattr(theirs, name)}"
    missing = sorted(set(champion.tallies) - set(challenger.tallies))
    return f"the challenger does not read {_listed(missing)}, which the champion does" if missing else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
