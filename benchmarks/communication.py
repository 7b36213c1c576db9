"""What a step sends: `PYTHONPATH=src:tests python -m benchmarks.communication [--out FILE]`.

Collectives and bytes of one training step as formulas of the model, for every engine, checked against those that the
trainer really asks for (`benchmarks.counted`, 2 and 4 processes over gloo; a difference of more than `TOLERANCE`
fails), then spread out to 512 GPUs. Seconds are modelled, never measured: rounds times latency plus bytes over speed
(the alpha-beta model, Hockney 1994), a ring within a machine, a tree between machines, at the makers' nominal speeds.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Engine = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]
Precision = Literal["fp32", "bf16"]
Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]

ENGINES: tuple[Engine, ...] = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
WORLDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOLERANCE = 0.03  # of the bytes; what is left are the pads that make shares equally long
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20  # bytes; DistributedDataParallel's own
ZERO_BUCKET = 50_000_000  # elements; facetclip.zero says so
FP32 = 4
GIB = 1 << 30


@dataclass(frozen=True)
class Model:
    """What the formulas need of one: elements of each parameter in order, of each sharded unit, of those units that
    are of the text tower, of what computes in bf16 under autocast (linear and convolution layers), and the width of the
    features that are gathered."""

    name: str
    sizes: tuple[int, ...]
    units: tuple[int, ...]
    text_units: tuple[int, ...]
    lower: int
    features: int

    @property
    def parameters(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True)
class Collective:
    """One kind of them in a step: how often, and the bytes of the whole tensors together, before they are shared."""

    kind: Kind
    times: int
    bytes: float
    what: str

    def sent(self, world: int) -> float:
        """Bytes that leave each process: the least there can be, which rings reach."""
        return (2 if self.kind == "all_reduce" else 1) * (world - 1) / world * self.bytes


def step(
    model: Model, engine: Engine, world: int, precision: Precision, contrastive_batch: int = 0
) -> list[Collective]:
    """All that one step asks for, with `train.micro_batch` not given; `contrastive_batch`: the global one, 0 without
    the contrastive objective."""
    if world == 1:
        return []
    found = _gradients(model, engine, precision)
    if contrastive_batch and engine == "fsdp2":  # captions pass through the text tower after the prompts
        width = 2 if precision == "bf16" else FP32
        again = width * 2 * sum(model.text_units)
        found.append(Collective("all_gather", 2 * len(model.text_units), again, "weights of the text tower again"))
    if contrastive_batch:
        each = contrastive_batch * model.features * FP32
        found += [
            Collective("all_gather", 2, 2 * each, "features of photos and captions"),
            Collective("all_reduce", 2, 2 * each, "their gradients"),
        ]
    return [*found, Collective("all_reduce", 1, (2 * world + 3) * FP32, "agreement")]


def _gradients(model: Model, engine: Engine, precision: Precision) -> list[Collective]:
    whole = FP32 * model.parameters
    mixed = whole if precision == "fp32" else whole - 2 * model.lower  # bf16 where autocast computes in it
    if engine == "ddp":
        return [Collective("all_reduce", buckets(model.sizes), whole, "gradients")]
    if engine == "fsdp2":
        width, units = (2 if precision == "bf16" else FP32), sum(model.units)
        # The root stays whole until its backward pass; the others are gathered for it once more.
        return [
            Collective("all_gather", 1 + 2 * len(model.units), width * (model.parameters + units), "weights"),
            Collective("reduce_scatter", 1 + len(model.units), width * model.parameters, "gradients"),
            Collective("all_reduce", 1, FP32 * len(model.sizes), "norms"),
        ]
    dtypes = 1 if precision == "fp32" else 2
    if engine == "zero3":
        # DeepSpeed lets weights go after the forward pass only in models beyond `stage3_max_reuse_distance`, a
        # billion; it asks for each by itself, or for several at once, as it has seen them come.
        return [
            Collective("all_gather", len(model.sizes), mixed, "weights"),
            Collective("reduce_scatter", dtypes, mixed, "gradients"),
            Collective("all_reduce", 2, 16, "norm and overflow"),
        ]
    # Gradients are summed whole, `use_multi_rank_bucket_allreduce`, and each process drops what is not its own.
    return [
        Collective("all_reduce", _zero_buckets(model, dtypes), mixed, "gradients"),
        Collective("all_gather", 2, whole, "weights"),  # those with weight decay, and those without
        Collective("all_reduce", 2, 8, "norm and overflow"),
    ]


def _zero_buckets(model: Model, dtypes: int) -> int:
    parts = (model.parameters,) if dtypes == 1 else (model.lower, model.parameters - model.lower)
    return sum(math.ceil(part / ZERO_BUCKET) for part in parts)


def buckets(sizes: Sequence[int]) -> int:
    """How many all-reduces the gradients of parameters of these sizes, last first, are packed into.

    >>> buckets([10, 10]), buckets([8_000_000, 8_000_000, 300_000])
    (1, 3)
    """
    number, filled, limit = 0, 0, FIRST_BUCKET
    for size in reversed(sizes):
        filled += FP32 * size
        if filled >= limit:
            number, filled, limit = number + 1, 0, BUCKET
    return number + (filled > 0)


def totals(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Kind -> how many, and their bytes."""
    times: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for each in collectives:
        times[each.kind] += each.times
        sizes[each.kind] += int(each.bytes)
    return {kind: {"times": times[kind], "bytes": sizes[kind]} for kind in sorted(times)}


@dataclass(frozen=True)
class Link:
    """Latency of a round in seconds, and bytes per second that one GPU sends over it, one way."""

    latency: float
    speed: float


@dataclass(frozen=True)
class Network:
    """GPUs of one machine on `inside`, machines on `between`."""

    inside: Link
    between: Link
    each: int = 8  # GPUs of a machine


# Speeds are the makers' nominal ones. Latencies are those that NCCL reckons with for a ring of its Simple protocol
# (NVIDIA NCCL, src/graph/tuning.cc, `hwLat`): rounded, 3.4 us over NVLink, 14 us over a network; 5.7 us over PCI.
NVLINK4 = Link(3.4e-6, 450e9)  # NVIDIA H100 SXM data sheet: 900 GB/s, both ways together
NVLINK3 = Link(3.4e-6, 300e9)  # NVIDIA A100 SXM data sheet: 600 GB/s, both ways together
PCIE4 = Link(5.7e-6, 32e9)  # PCI-SIG, PCI Express 4.0 x16: 64 GB/s, both ways together
NDR = Link(14e-6, 50e9)  # NVIDIA DGX H100 data sheet: a 400 Gb/s ConnectX-7 for each GPU
HDR = Link(14e-6, 25e9)  # NVIDIA DGX A100 data sheet: a 200 Gb/s ConnectX-6 for each GPU
ETHERNET = Link(50e-6, 100e9 / 8 / 8)  # IEEE 802.3 at 100 Gb/s, shared by 8 GPUs; TCP's latency is assumed
NETWORKS = {
    "H100, NVLink 4, InfiniBand NDR": Network(NVLINK4, NDR),
    "A100, NVLink 3, InfiniBand HDR": Network(NVLINK3, HDR),
    "PCIe 4, Ethernet of 100 Gb/s a machine": Network(PCIE4, ETHERNET),
}


def seconds(collective: Collective, world: int, network: Network) -> float:
    """Modelled: within machines, then between them on what is left of the tensor, nothing at the same time."""
    inside = min(world, network.each)
    machines = math.ceil(world / network.each)
    passes = 2 if collective.kind == "all_reduce" else 1
    rounds = collective.times * passes
    spent = rounds * (inside - 1) * network.inside.latency + rounds * math.log2(machines) * network.between.latency
    size = passes * collective.bytes
    spent += size * (inside - 1) / inside / network.inside.speed
    return spent + size / inside * (machines - 1) / machines / network.between.speed


def memory(model: Model, engine: Engine, world: int) -> float:
    """Modelled: bytes on each GPU of weights, gradients and AdamW's state in fp32 and of the engine's buffers; what
    the photos need comes on top, and is the same for all engines."""
    whole, largest = FP32 * model.parameters, FP32 * max((model.parameters - sum(model.units), *model.units))
    share = whole / world
    if engine == "ddp":
        return 4 * whole + (whole if world > 1 else 0)  # its buckets hold the gradients once more
    if engine == "fsdp2":
        return 4 * share + 2 * largest
    bucket = FP32 * min(ZERO_BUCKET, model.parameters)
    if engine == "zero3":
        return 5 * share + whole + bucket  # whole weights until the backward pass, see above
    kept = whole if engine == "zero1" else share  # gradients; pieces of fp32 beside the weights, and their state
    return whole + kept + 3 * share + 4 * bucket  # two buffers for what computes in bf16, and two for the rest


def row(model: Model, engine: Engine, world: int, precision: Precision, contrastive_batch: int) -> dict[str, Any]:
    """One line of the table."""
    found = step(model, engine, world, precision, contrastive_batch)
    modelled = {name: sum(seconds(each, world, network) for each in found) for name, network in NETWORKS.items()}
    return {
        "model": model.name,
        "engine": engine,
        "precision": precision,
        "contrastive batch": contrastive_batch,
        "GPUs": world,
        "collectives": sum(each.times for each in found),
        "MB sent by each GPU": round(sum(each.sent(world) for each in found) / 1e6, 1),
        "GiB of state on each GPU, modelled": round(memory(model, engine, world) / GIB, 2),
        "ms, modelled, nothing hidden": {name: round(1000 * value, 2) for name, value in modelled.items()},
    }


def clip_model(name: str, clip: Any) -> Model:
    """The figures of a `transformers` CLIP (on any device, `meta` too), or of a reader around one."""
    from torch import nn

    kinds: dict[int, nn.Module] = {}
    for module in clip.modules():
        kinds |= {id(weight): module for weight in module.parameters(recurse=False)}
    weights = list(clip.parameters())
    units = {name: module for name, module in clip.named_modules() if type(module).__name__.endswith("EncoderLayer")}
    elements = {name: sum(weight.numel() for weight in unit.parameters()) for name, unit in units.items()}
    return Model(
        name=name,
        sizes=tuple(weight.numel() for weight in weights),
        units=tuple(elements.values()),
        text_units=tuple(size for name, size in elements.items() if "text_model." in name),
        lower=sum(weight.numel() for weight in weights if isinstance(kinds[id(weight)], nn.Linear | nn.Conv2d)),
        features=getattr(clip, "clip", clip).config.projection_dim,
    )


def published() -> list[Model]:
    """CLIP ViT-B/32 and ViT-L/14, by their configurations; no weight is made."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    large_text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    large_image = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    shapes = {
        "ViT-B/32": CLIPConfig(),
        "ViT-L/14": CLIPConfig(
            text_config=large_text.to_dict(), vision_config=large_image.to_dict(), projection_dim=768
        ),
    }
    with torch.device("meta"):
        return [clip_model(name, CLIPModel(config)) for name, config in shapes.items()]


def table() -> list[dict[str, Any]]:
    """Every engine on 1 to 512 GPUs, for both models; the contrastive objective with 64 photos a GPU, under DDP."""
    rows = []
    for model in published():
        for world in WORLDS:
            rows += [row(model, engine, world, "bf16", 0) for engine in ENGINES]
            rows.append(row(model, "ddp", world, "bf16", 64 * world))
    return rows


def markdown(model: Model, worlds: Sequence[int] = (2, 4, 8, 16, 32, 64)) -> list[str]:
    """The tables of docs/cluster.md, line by line: memory, and what a step sends with the modelled milliseconds."""
    lines = ["| GPUs | " + " | ".join(ENGINES) + " |", "|---|" + "---|" * len(ENGINES)]
    for world in worlds:
        found = [f"{memory(model, engine, world) / GIB:.1f}" for engine in ENGINES]
        lines.append(f"| {world} | " + " | ".join(found) + " |")
    lines += ["", *lines[:2]]
    for world in worlds:
        found = []
        for engine in ENGINES:
            told = row(model, engine, world, "bf16", 0)
            fast, _, slow = told["ms, modelled, nothing hidden"].values()
            found.append(f"{told['MB sent by each GPU']:.0f} MB in {told['collectives']}; {fast:.1f}, {slow:.0f} ms")
        lines.append(f"| {world} | " + " | ".join(found) + " |")
    return lines


def main() -> None:
    from benchmarks.counted import compare
    from benchmarks.measuring import environment, write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "communication.json")
    args = parser.parse_args()
    checked = [
        compare(engine, world, precision, contrastive)
        for engine in ENGINES
        for world, precision, contrastive in ((2, "fp32", False), (4, "fp32", True), (2, "bf16", True))
    ]
    result = {
        "environment": environment(("torch", "accelerate", "deepspeed")),
        "counted against the formulas": checked,
        "figures below": "modelled; seconds at nominal speeds, nothing hidden behind computing",
        "table": table(),
    }
    write_result(args.out, result)
    for model in published():
        print(model.name, *markdown(model), sep="\n")


if __name__ == "__main__":
    main()
