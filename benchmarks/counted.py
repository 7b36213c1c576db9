"""The collectives that the trainer really asks for in one step, counted, against `benchmarks.communication`.

Processes are forked and joined by gloo as in the tests (`tests/fleet.py`, which must be importable), so every engine
runs without a GPU; what is counted is what torch is asked for, whatever carries it.
"""

import json
import math
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from benchmarks.communication import TOLERANCE, Engine, Precision, clip_model, step, totals
from fleet import launch_fleet, load_deepspeed
from small_shop import make_shards
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facetclip.config import NewModel, RunConfig, validated
from facetclip.launch import make_accelerator
from facetclip.trainer import Trainer

KINDS = {
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
}
SILENT = ("_wrap_tensor_autograd", "wait_tensor")  # of the same name-space, but nothing is sent
SETTLED = 2  # steps after which DDP has packed its buckets and ZeRO-3 knows the order of the weights
BATCH = 8
SHAPE = NewModel(
    image_size=16,
    patch_size=8,
    vision_width=128,
    vision_layers=2,
    vision_heads=2,
    text_width=128,
    text_layers=2,
    text_heads=2,
    embedding=32,
    vocabulary=300,
    positions=16,
)


class Counting(TorchDispatchMode):
    """Every collective inside the block: how many of each kind, and the bytes of the whole tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # comes back as what it is made of
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name not in SILENT:
            self._count(KINDS[name], [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)])
        return func(*args, **(kwargs or {}))

    def _count(self, kind: str, tensors: list[torch.Tensor]) -> None:
        sizes = [math.prod(each.shape) * each.element_size() for each in tensors]
        # Of a gather into a list the parts come as tensors of their own, beside the one that is given.
        whole = sum(sizes) - sizes[-1] if kind == "all_gather" and len(sizes) > 2 else max(sizes)
        self.times[kind] += 1
        self.bytes[kind] += whole

    @property
    def totals(self) -> dict[str, dict[str, float]]:
        return {kind: {"times": self.times[kind], "bytes": self.bytes[kind]} for kind in sorted(self.times)}


def run_of(folder: Path, *, contrastive: bool) -> RunConfig:
    sections: dict[str, Any] = {
        "data": {"shards": str(folder / "shards")},
        "model": {"new": SHAPE.model_dump()},
        "train": {"steps": SETTLED + 1, "batch": BATCH},
        "optimizer": {"lr": 1e-3},
        "objective": {"contrastive": float(contrastive)},
        "output": {"folder": str(folder / "run")},
    }
    return validated(RunConfig, sections, "benchmark")


def counted(folder: Path, engine: Engine, world: int, precision: Precision, *, contrastive: bool) -> dict[str, Any]:
    """One settled step under an engine: `counted` and `formula`, kind -> times and bytes."""
    make_shards(folder / "shards", 60, validation=True)
    run, out = run_of(folder, contrastive=contrastive), folder / "counted.json"

    def work() -> int:
        os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no"}.get(precision, precision)
        if engine == "zero3":  # the usual threshold would keep all of so small a model whole
            tuned = folder / "deepspeed.json"
            os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(tuned)
        trainer = Trainer(run, make_accelerator())
        for planned in trainer.feed.planned(0, SETTLED + 1):
            portion = trainer.feed.portion(trainer.inputs, planned)
            with Counting() as counting:
                trainer.train_step(portion)
        if trainer.accelerator.is_main_process:
            out.write_text(json.dumps(counting.totals))
        return 0

    (folder / "deepspeed.json").write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 1000}}')
    if engine.startswith("zero") and not load_deepspeed():
        raise ImportError("DeepSpeed is not installed")
    from facetclip.index import open_index
    from facetclip.trainer import start_model

    model = clip_model("counted", start_model(run, open_index(folder / "shards")))
    ended = launch_fleet(folder / "fleet", world, work, engine=engine)
    if any(ended.codes):
        raise RuntimeError(f"{engine} on {world}: {ended.errors[0][-3000:]}")
    formula = totals(step(model, engine, world, precision, BATCH if contrastive else 0))
    return {"counted": json.loads(out.read_text()), "formula": formula}


def compare(engine: Engine, world: int, precision: Precision, contrastive: bool) -> dict[str, Any]:
    """The same, with what it is of; RuntimeError where the two differ."""
    with tempfile.TemporaryDirectory() as name:
        both = counted(Path(name), engine, world, precision, contrastive=contrastive)
    told = {"engine": engine, "processes": world, "precision": precision, "contrastive": contrastive, **both}
    if wrong := differences(both["counted"], both["formula"], times=engine != "zero3"):
        raise RuntimeError(f"{engine}, {world} processes, {precision}: {'; '.join(wrong)}")
    print(f"{engine}, {world} processes, {precision}: as reckoned")
    return told


def differences(counts: dict[str, Any], formula: dict[str, Any], *, times: bool) -> list[str]:
    """Each kind that is not as the formula says. `times`: how often, too, where the engine leaves no choice."""
    found = []
    for kind in sorted({*counts, *formula}):
        nothing = {"times": 0, "bytes": 0}
        real, said = counts.get(kind, nothing), formula.get(kind, nothing)
        if times and real["times"] != said["times"]:
            found.append(f"{kind}: {real['times']} of them, {said['times']} by the formula")
        if abs(real["bytes"] - said["bytes"]) > TOLERANCE * max(said["bytes"], 1):
            found.append(f"{kind}: {real['bytes']} bytes, {said['bytes']} by the formula")
    return found
