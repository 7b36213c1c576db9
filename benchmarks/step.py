"""One training step, ours against the peers': `python -m benchmarks.step --peers FOLDER [--gpu] [--out FILE]`.

Photos lie on the device as uint8 (the peers' as floats, ready for their models), weights are random in the shapes of
CLIP, and every contender is a process of its own that steps whenever it is its turn: facetclip's own loop
(`Trainer._loop`: prompts of five attributes, augmenting, clipping, agreeing, log), open_clip's `train_one_epoch` with
`ClipLoss` on captions of 77 tokens, and transformers' `CLIPModel(return_loss=True)` under `Trainer` as `run_clip.py`
drives it. Our gradients are compared with a plain reference first. Then what each part of our step is worth, by taking
out one at a time.

On a processor seconds are processor seconds, since the machine may be shared; on a GPU (`--gpu`: ten minutes, several
shapes and batches, bf16) seconds on the clock. `--peers`: where their environment is made (`benchmarks.data.peers`);
without it they are looked for in this one, and left out where they are not.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.data.peers import interpreter
from benchmarks.measuring import environment, ratio, write_result
from benchmarks.stepping.spec import Spec
from benchmarks.stepping.worker import Worker

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # of a gradient, relative to the reference's in fp32
PLAIN = {"augment.flip": False, "augment.smallest_crop": 1.0, "augment.brightness": 0.0}  # what a reference can follow
WARM = 5
# Shape, batch, whether all contenders: a photo takes 19, 75, 261 MB of ours and up to 47, 117, 362 MB of a peer's.
GPU_CASES = (
    ("ViT-B-32", 1024, True),
    ("ViT-B-16", 256, False),
    ("ViT-L-14", 96, False),
    ("ViT-B-32", 256, False),
)
GPU_ROUNDS, GPU_STEPS = 3, 6
LEAST_LEFT = 45.0  # seconds, to begin another comparison
CHECKED = 8  # photos


@dataclass(frozen=True)
class Place:
    """Where contenders run."""

    folder: Path
    peers: str | None  # their Python
    clock: str  # the seconds that count

    def worker(self, spec: Spec) -> Worker:
        python = sys.executable if spec.who == "ours" or self.peers is None else self.peers
        folder = self.folder / spec.shape  # whose start model all of ours share
        folder.mkdir(exist_ok=True)
        worker = Worker(python, spec, folder)
        if spec.who == "ours" and not (folder / "start").exists():
            assert worker.facts  # it is written before another looks for it
        return worker


def check_gradients(place: Place, specs: Iterable[Spec]) -> list[dict[str, Any]]:
    """How far ours are from the plain reference's; RuntimeError where that is too far."""
    found = []
    for spec in specs:
        worker = place.worker(replace(spec, batch=min(spec.batch, CHECKED), settings=spec.settings | PLAIN))
        apart = worker.ask("check")
        worker.close()
        if not apart["all"] <= TOLERANCE[spec.precision]:
            raise RuntimeError(f"{spec}: gradients differ from the reference's by {apart}")
        found.append({"precision": spec.precision, "locked": spec.locked, **apart})
    return found


def compare(
    place: Place, specs: dict[str, Spec], rounds: int, steps: int, until: float = float("inf")
) -> dict[str, Any]:
    """Each contender in turn, `rounds` times, after a step each to warm up; the first twice a round, as a control.

    The first round is whole; none is begun after `until` (`time.monotonic`). A contender that fails drops out with its
    reason; RuntimeError where it is the first, which the others are compared with.
    """
    first, failed = next(iter(specs)), {}
    workers, counted = _ready(place, specs, failed)
    taken: dict[str, list[float]] = {name: [] for name in (*workers, "control")}
    peaks = []
    for turn in range(rounds):
        if turn and time.monotonic() > until:
            break
        order = [*workers, "control"] if turn % 2 else ["control", *reversed(workers)]
        for name in order:
            who = first if name == "control" else name
            with _dropping(who, workers, failed):
                seconds = workers[who].ask(f"steps {steps}")[place.clock]
                taken[name].append(seconds)
                print(f"  round {turn + 1}: {name} {seconds:.3f} s", flush=True)
            _require(first, workers, failed)
        with _dropping(first, workers, failed):
            peaks.append(workers[first].ask("matmul")["flops per second"])
        _require(first, workers, failed)
    rows, peak = {}, statistics.median(peaks)
    for name in list(workers):
        with _dropping(name, workers, failed):
            rows[name] = {
                **workers[name].facts,
                **told(specs[name].batch, taken[name], counted[name], peak),
                "peak memory GiB": round(workers[name].ask("memory")["bytes"] / 2**30, 2),
                f"{name} / {first}": ratio(taken[name], taken[first]),
            }
    for worker in workers.values():
        worker.close()
    found = {
        "matmul peak GFLOP/s": round(peak / 1e9, 1),
        "control / itself": ratio(taken["control"], taken[first]),
        "contenders": rows,
    }
    return found | ({"failed": failed} if failed else {})


def _ready(place: Place, specs: dict[str, Spec], failed: dict[str, str]) -> tuple[dict[str, Worker], dict[str, int]]:
    """The contenders that have stepped, and the operations of a step of each."""
    workers, counted, first = {}, {}, next(iter(specs))
    for name, spec in specs.items():
        workers[name] = place.worker(spec)
    for name in specs:
        with _dropping(name, workers, failed):
            counted[name] = workers[name].ask("flops")["flops"]
            if warm := WARM if place.clock == "wall" else int(specs[name].compiles):  # such first steps take long
                workers[name].ask(f"steps {warm}")
        _require(first, workers, failed)
    return workers, counted


def _require(first: str, workers: dict[str, Worker], failed: dict[str, str]) -> None:
    """RuntimeError, and nobody goes on, where the one that others are compared with failed."""
    if first in failed:
        for worker in workers.values():
            worker.close()
        raise RuntimeError(failed[first])


@contextmanager
def _dropping(name: str, workers: dict[str, Worker], failed: dict[str, str]) -> Iterator[None]:
    """A contender that fails inside is out, with the last line of its reason."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # its own words, or it is gone
        failed[name] = str(error).strip().splitlines()[-1]
        workers.pop(name).close()
        print(f"  {name} failed: {failed[name]}", flush=True)


def told(batch: int, seconds: list[float], flops: int, peak: float) -> dict[str, Any]:
    """What one contender does in a second."""
    middle = statistics.median(seconds)
    return {
        "seconds of a step": [round(each, 4) for each in seconds],
        "images/s": round(batch / middle, 2),
        "GFLOP of a step": round(flops / 1e9, 1),
        "GFLOP/s": round(flops / middle / 1e9, 1),
        "share of the matmul peak": round(flops / middle / peak, 3),
    }


def here_or_there(peers: Path | None, *, gpu: bool) -> tuple[str | None, list[str]]:
    """The peers' Python, and which of them there are."""
    if peers:
        return str(interpreter(peers, "clip")), ["open_clip", "transformers"]
    names = {"open_clip": "open_clip_train", "transformers": "transformers"}
    usable = [who for who, module in names.items() if find_spec(module)]
    return None, usable if gpu or find_spec("torchvision") else []


def contenders(base: Spec, usable: list[str], *, compiled: bool) -> dict[str, Spec]:
    """Ours with the text live and locked, and the peers."""
    found = {"ours": base, "ours, text locked": replace(base, locked=True)}
    theirs = replace(base, settings={}, compiled=False)
    if "open_clip" in usable:
        found["open_clip"] = replace(theirs, who="open_clip")
        found["open_clip, text locked"] = replace(theirs, who="open_clip", locked=True)
        if compiled:
            found["open_clip, compiled"] = replace(theirs, who="open_clip", compiled=True)
    if "transformers" in usable:
        found["transformers"] = replace(theirs, who="transformers")
    return found


# What is changed in our step -> how. One at a time.
LADDER: dict[str, dict[str, Any]] = {
    "without: prompts cut to the longest": {"without": ("prompts cut to the longest",)},
    "captions instead of prompts": {"settings": {"objective.attributes": 0.0, "objective.contrastive": 1.0}},
    "text locked, features not kept": {"locked": True, "without": ("text features kept",)},
    "without: last layer for the class token alone": {"without": ("last layer for the class token alone",)},
    "without: fused AdamW": {"without": ("fused AdamW",)},
    "without: GELU as a SiLU": {"without": ("GELU as a SiLU",)},
    "without: SDPA": {"without": ("SDPA",)},
    "train.compile": {"settings": {"train.compile": True}},
    "train.recompute": {"settings": {"train.recompute": True}},
    "micro-batches of a half": {"settings": {"train.micro_batch": 0.5}},
}


def rung(base: Spec, change: dict[str, Any]) -> Spec:
    settings = dict(change.get("settings", {}))
    if "train.micro_batch" in settings:
        settings["train.micro_batch"] = max(1, int(base.batch * settings["train.micro_batch"]))
    return replace(base, **change | {"settings": base.settings | settings})


def ladder(place: Place, base: Spec, rounds: int, steps: int, names: Iterable[str]) -> dict[str, Any]:
    """Each rung against the whole step, two processes at a time; a rung that this device lacks says why."""
    found: dict[str, Any] = {}
    for name in names:
        changed = rung(base, LADDER[name])
        whole = replace(base, locked=changed.locked)
        print(name, flush=True)
        try:
            both = compare(place, {"whole": whole, name: changed}, rounds, steps)
        except RuntimeError as error:
            found[name] = {"failed": str(error).strip().splitlines()[-1]}
            continue
        if name in both.get("failed", {}):
            found[name] = {"failed": both["failed"][name]}
            continue
        row = both["contenders"][name]
        found[name] = {
            "times the whole step": row[f"{name} / whole"],
            "control / itself": both["control / itself"],
            "GFLOP of a step": row["GFLOP of a step"],
            "peak memory GiB": row["peak memory GiB"],
        }
        print(f"  {row[f'{name} / whole']['median']:.3f} times the seconds of the whole step", flush=True)
    return found


def table(title: str, found: dict[str, Any]) -> list[str]:
    """A comparison for a person."""
    lines = [
        title,
        f"matmul peak {found['matmul peak GFLOP/s']:.0f} GFLOP/s, control {found['control / itself']['median']:.3f}",
        f"{'':28}{'images/s':>10}{'GFLOP/s':>10}{'of peak':>9}{'GiB':>7}{'x ours':>12}{'spread':>16}",
    ]
    for name, row in found["contenders"].items():
        times = next(value for key, value in row.items() if " / " in key and isinstance(value, dict))
        lines.append(
            f"{name:28}{row['images/s']:>10.2f}{row['GFLOP/s']:>10.0f}{row['share of the matmul peak']:>9.1%}"
            f"{row['peak memory GiB']:>7.2f}{times['median']:>12.2f}{times['least']:>9.2f}-{times['most']:.2f}"
        )
    return lines


def on_gpu(place: Place, usable: list[str], out: Path, seconds: float) -> None:
    """All shapes in bf16 and the ladder of the first, as far as `seconds` allow; what is known is written at once, and
    the tables come once more at the end."""
    until = time.monotonic() + seconds
    result: dict[str, Any] = {"environment": environment(("torch", "transformers", "numpy"))}
    result["device"] = device_name()
    base = Spec(device="cuda", precision="bf16", threads=2)
    lines = [result["device"]]

    def note(title: str, found: Any, more: list[str]) -> None:
        result[title] = found
        lines.extend(more)
        print(*more, sep="\n", flush=True)
        write_result(out, result)

    try:
        found = check_gradients(place, [replace(base, precision="fp32"), base, replace(base, locked=True)])
    except RuntimeError as error:
        found = str(error).strip().splitlines()[-1]
    note("gradients", found, [f"gradients against the plain reference: {found}"])
    for shape, batch, several in GPU_CASES:
        title, left = f"{shape}, batch {batch}, bf16", until - time.monotonic()
        if left < LEAST_LEFT:
            note(title, None, [f"{title}: no time was left"])
            continue
        specs = gpu_contenders(replace(base, shape=shape, batch=batch), usable, several=several)
        try:
            compared = compare(place, specs, GPU_ROUNDS, GPU_STEPS, until)
        except RuntimeError as error:
            note(title, str(error), [f"{title}: {str(error).strip().splitlines()[-1]}"])
        else:
            note(title, compared, table(title, compared))
    result["ladder"] = {}
    for name in LADDER:
        if until - time.monotonic() < LEAST_LEFT:
            break
        result["ladder"] |= ladder(place, replace(base, batch=GPU_CASES[0][1]), GPU_ROUNDS, GPU_STEPS, [name])
        write_result(out, result)
    rungs = [
        f"{name}: {row.get('failed') or row['times the whole step']['median']}"
        for name, row in result["ladder"].items()
    ]
    print(*lines, *rungs, sep="\n", flush=True)


def gpu_contenders(case: Spec, usable: list[str], *, several: bool) -> dict[str, Spec]:
    """Ours and open_clip, eager and compiled; with `several` also with the text locked, and transformers. All lie in
    the GPU's memory at the same time."""
    found = contenders(case, usable, compiled=True)
    found["ours, compiled"] = replace(case, settings={"train.compile": True})
    few = ("ours", "ours, compiled", "open_clip", "open_clip, compiled")
    return found if several else {name: spec for name, spec in found.items() if name in few}


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--shape", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compiled", action="store_true", help="open_clip with --torchcompile, too")
    parser.add_argument("--rungs", nargs="*", default=list(LADDER), choices=list(LADDER), help="of the ladder")
    parser.add_argument("--gpu", action="store_true", help="the shapes and batches of a GPU, in bf16")
    parser.add_argument("--seconds", type=float, default=400, help="after which --gpu begins nothing new")
    parser.add_argument("--out", type=Path, help="results/step.json, or step_gpu.json, where not given")
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / ("step_gpu.json" if args.gpu else "step.json")
    python, usable = here_or_there(args.peers, gpu=args.gpu)
    if args.gpu:
        with tempfile.TemporaryDirectory() as name:
            on_gpu(Place(Path(name), python, "wall"), usable, out, args.seconds)
        return
    base = Spec(shape=args.shape, batch=args.batch, precision=args.precision, threads=args.threads)
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name), python, "processor")
        result: dict[str, Any] = {"environment": environment(("torch", "transformers", "numpy"))}
        result["gradients"] = check_gradients(place, [base, replace(base, locked=True)])
        print("gradients against the plain reference:", result["gradients"], flush=True)
        specs = contenders(base, usable, compiled=args.compiled)
        title = f"{base.shape}, batch {base.batch}, {base.precision}, {args.threads} thread"
        result[title] = compare(place, specs, args.rounds, args.steps)
        print(*table(title, result[title]), sep="\n", flush=True)
        result["ladder"] = ladder(place, base, args.rounds, args.steps, args.rungs)
    write_result(out, result)


if __name__ == "__main__":
    main()
