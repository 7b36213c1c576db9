"""The time and memory of a training plan: `python benchmarks/plan.py [--items 10000000] [--values 40] [--out FILE]`.

Zipf-skewed values, one attribute, then four and ten with 60% gaps, products of one to five views; each in its own
process, so that peak memory is its own.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
from measuring import environment, write_result

from facetclip.mix import plan_mix
from facetclip.sampling import SamplingSpec, plan_epoch

SPEC = SamplingSpec(batch=4096, max_repeats=100)  # so that the data does not forbid balance


def measure(case: tuple[int, int, int, float]) -> dict[str, float]:
    items, values, attributes, gaps = case
    random = np.random.default_rng(0)
    labels = {}
    for number in range(attributes):
        drawn = np.minimum(random.zipf(1.3, items) - 1, values - 1)
        labels[f"attribute {number}"] = np.where(random.random(items) < gaps, -1, drawn).astype(np.int16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    products = np.cumsum(random.random(items) < 0.5, dtype=np.int32)
    started = time.perf_counter()
    plan = plan_epoch(labels, products, SPEC, seed=0, epoch=1)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case_of = {"items": items, "values": values, "attributes": attributes, "gaps": gaps}
    memory = {"peak_gib": peak / 2**20, "peak_before_planning_gib": before / 2**20}
    return {**case_of, "seconds": seconds, **memory, "batches": len(plan), "strays": strays(labels, plan)}


def strays(labels: dict[str, np.ndarray], plan: np.ndarray) -> float:
    """How far the most and the least drawn value of an attribute are apart, as a ratio less 1; the worst attribute."""
    mixes = plan_mix(labels, plan, SPEC)
    return max(max(mix.got.values()) / min(mix.got.values()) - 1 for mix in mixes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--values", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan.json")
    args = parser.parse_args()
    results = []
    for attributes, gaps in ((1, 0.0), (4, 0.6), (10, 0.6)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(measure, ((args.items, args.values, attributes, gaps),)))
        print(json.dumps(results[-1]))
    write_result(args.out, {"environment": environment(["numpy"]), "results": results})


if __name__ == "__main__":
    main()
