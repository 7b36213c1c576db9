"""What a machine downloads in an epoch where its cache holds less than the data: `python -m benchmarks.data.windows`.

A million synthetic items in 200 shards, their values Zipf-skewed, half of them sorted by value as catalogs are. A
machine downloads a shard whole. Ways to share a global batch: every n-th column; each machine its own shards as far as
equal shares allow, what it has too many of lent from as few shards as can be; neighbouring columns of a batch in the
order of the window's shards, which is what is built.
"""

import argparse
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.measuring import environment, write_result

from facetclip.sampling import SamplingSpec, plan_epoch

ITEMS, SHARDS, VALUES = 1_000_000, 200, 12
Share = Callable[[np.ndarray, int], list[np.ndarray]]  # shards of a batch -> those that each machine reads


def catalog(*, shuffled: bool) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    kind = np.minimum(random.zipf(1.5, ITEMS) - 1, VALUES - 1)
    if not shuffled:
        kind[: ITEMS // 2].sort()
    colour = random.integers(0, 8, ITEMS)
    labels = {"kind": kind.astype(np.int16), "colour": colour.astype(np.int16)}
    return labels, np.arange(ITEMS) // 3, np.arange(ITEMS) * SHARDS // ITEMS


def every_nth(shards: np.ndarray, machines: int) -> list[np.ndarray]:
    return [shards[machine::machines] for machine in range(machines)]


def neighbours(shards: np.ndarray, machines: int) -> list[np.ndarray]:
    return np.split(shards, [machine * len(shards) // machines for machine in range(1, machines)])


def own_first(shards: np.ndarray, machines: int) -> list[np.ndarray]:
    """Columns arrive in the order of the window's shards; a shard belongs to machine `number % machines`."""
    capacity = len(shards) // machines
    mine = [shards[shards % machines == machine] for machine in range(machines)]
    lent = np.concatenate([np.sort(each)[capacity:] for each in mine])
    kept = [np.sort(each)[:capacity] for each in mine]
    out = []
    for each in kept:
        taken, lent = lent[: capacity - len(each)], lent[capacity - len(each) :]
        out.append(np.concatenate([each, taken]))
    return out


def downloads(plan: np.ndarray, of: np.ndarray, share: Share, machines: int, held: int) -> float:
    """Shards downloaded by a machine in an epoch, as a share of all, its cache dropping what was read longest ago."""
    counts = []
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(machines)]
    for batch in plan:
        for cache, part in zip(caches, share(of[batch], machines), strict=True):
            for shard in np.unique(part).tolist():
                if shard not in cache:
                    counts.append(shard)
                    cache[shard] = None
                cache.move_to_end(shard)
                if len(cache) > held:
                    cache.popitem(last=False)
    return len(counts) / machines / SHARDS


def spread(labels: dict[str, np.ndarray], plan: np.ndarray) -> float:
    """How far a value's share of a batch strays from batch to batch, in shares of an even mix."""
    shares = np.stack([np.bincount(labels["kind"][each], minlength=VALUES) for each in plan]) / plan.shape[1]
    return round(float(shares.std(axis=0).mean() * VALUES), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "windows.json")
    args = parser.parse_args()
    (labels, products, of), (mixed, *_) = catalog(shuffled=False), catalog(shuffled=True)
    results = []
    for batch in (256, 1024, 4096):
        for window in (None, 16, 32):
            began = time.process_time()
            spec = SamplingSpec(batch, window=window, max_repeats=20)
            plan = plan_epoch(labels, products, spec, seed=0, epoch=0, shards=of)
            facts = {"batch": batch, "window": window, "plan_cpu_seconds": round(time.process_time() - began, 2)}
            facts["spread_of_shares"] = spread(labels, plan)
            again = plan_epoch(mixed, products, spec, seed=0, epoch=0, shards=of)
            facts["spread_of_shares, catalog shuffled"] = spread(mixed, again)
            for machines in (1, 2, 4, 8):
                held = 2 * (window or 16)
                ways = {"every_nth": every_nth, "own_first": own_first, "neighbours": neighbours}
                for name, share in ways.items() if window else [("every_nth", every_nth)]:
                    facts[f"{name}, {machines} machines"] = round(downloads(plan, of, share, machines, held), 3)
            results.append(facts)
            print(json.dumps(facts), flush=True)
    packages = environment(["numpy"])
    write_result(args.out, {"environment": packages, "items": ITEMS, "shards": SHARDS, "results": results})


if __name__ == "__main__":
    main()
