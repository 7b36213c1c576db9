"""A contender in a process of its own: `python -m benchmarks.stepping.worker FOLDER SPEC` answers orders, a line each.

`steps N` -> seconds on the clock and of the processor for one step; `flops` -> of one forward and backward pass, by
torch's own counter; `matmul` -> FLOP/s of the fastest matrix product; `check` -> how far gradients are from the
reference's; `memory` -> the most bytes so far, of the GPU where there is one.
"""

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.stepping.shapes import SHAPES, here
from benchmarks.stepping.spec import Spec

PRODUCTS = {  # rows, inner, columns of the matrix products that a device's peak is read from
    "cpu": [(1600, 768, 3072), (1600, 3072, 768), (1536, 1536, 1536)],
    "cuda": [(8192, 8192, 8192), (51200, 768, 3072), (16384, 1024, 4096)],
}


REFILL = 3  # steps


class Worker:
    """The parent's end."""

    def __init__(self, python: str, spec: Spec, folder: Path) -> None:
        paths = os.pathsep.join([str(here() / "src"), str(here()), os.environ.get("PYTHONPATH", "")])
        more = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(spec.threads)}
        self.spec = spec
        self._child = Child(python, "benchmarks.stepping.worker", str(folder), spec.to_json(), **more)
        self._facts: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What it says of itself when it is ready."""
        self._facts = self._facts or self._checked(self._child.hear())
        return self._facts

    def ask(self, order: str) -> dict[str, Any]:
        """The answer to one order; RuntimeError with the worker's own words where it failed."""
        assert self.facts
        return self._checked(self._child.ask(order))

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            self.close()
            raise RuntimeError(f"{self.spec.who}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._child.close()


def contender(spec: Spec, folder: Path) -> Any:
    """What is to be stepped."""
    shape = SHAPES[spec.shape]
    if spec.who == "ours":
        from benchmarks.stepping.ours import Ours

        return Ours(spec, shape, folder)
    from benchmarks.stepping import peers

    return {"open_clip": peers.OpenClip, "transformers": peers.Transformers}[spec.who](spec, shape)


def settle(spec: Spec) -> None:
    """Wait for the device."""
    if spec.device == "cuda":
        import torch

        torch.cuda.synchronize()


def timed(spec: Spec, runner: Any, count: int) -> dict[str, float]:
    """Seconds of one step out of `count`; on a GPU after some that fill its memory anew, which is given back at the end
    so that contenders do not have to share it."""
    import torch

    gpu = spec.device == "cuda"
    if gpu:
        runner.steps(REFILL)
        torch.cuda.reset_peak_memory_stats()
    settle(spec)
    wall, processor = time.perf_counter(), time.process_time()
    runner.steps(count)
    settle(spec)
    told = {
        "wall": (time.perf_counter() - wall) / count,
        "processor": (time.process_time() - processor) / count,
    }
    if gpu:
        torch.cuda.empty_cache()
    return told


def flops(runner: Any) -> dict[str, int]:
    """Of one forward and backward pass; products, convolutions and attention alone, as is usual."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        runner.once()
    torch.compiler.reset()  # what ran under the counter would never be compiled afterwards
    return {"flops": counter.get_total_flops()}


def matmul_peak(spec: Spec) -> dict[str, float]:
    """The fastest of a few products of the training's own precision, FLOP/s."""
    import torch

    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    best, repeats = 0.0, 20 if spec.device == "cuda" else 3
    for rows, inner, columns in PRODUCTS[spec.device]:
        left, right = (torch.randn(shape, device=spec.device).to(dtype) for shape in ((rows, inner), (inner, columns)))
        left @ right
        settle(spec)
        clock = time.perf_counter if spec.device == "cuda" else time.process_time
        began = clock()
        for _ in range(repeats):
            left @ right
        settle(spec)
        best = max(best, 2 * rows * inner * columns * repeats / (clock() - began))
    return {"flops per second": best}


def memory(spec: Spec) -> dict[str, int]:
    """The most that were taken at once; on a GPU in the last turn."""
    if spec.device == "cuda":
        import torch

        return {"bytes": torch.cuda.max_memory_allocated()}
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def answer(spec: Spec, runner: Any, order: str) -> dict[str, Any]:
    verb, _, number = order.strip().partition(" ")
    if verb == "steps":
        return timed(spec, runner, int(number))
    if verb == "check":
        return runner.furthest_gradient()
    return {"flops": lambda: flops(runner), "matmul": lambda: matmul_peak(spec), "memory": lambda: memory(spec)}[verb]()


def main() -> None:
    """Answer line by line; whatever libraries print goes to the standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    try:
        spec = Spec.from_json(sys.argv[2])
        torch.set_num_threads(spec.threads)
        runner = contender(spec, Path(sys.argv[1]))
        print(json.dumps(runner.facts), file=out)
        for order in sys.stdin:
            print(json.dumps(answer(spec, runner, order)), file=out)
    except Exception as error:
        print(json.dumps({"error": "".join(traceback.format_exception(error))[-3000:]}), file=out)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
