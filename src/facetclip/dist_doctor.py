"""`facetclip doctor --dist` under a launcher: do the processes form one group, agree, and how fast do they talk.

A minute before the hours on many GPUs are spent. Every process tells what it is; the first one compares and prints.
"""

import os
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch

from facetclip.collectives import gather_objects, sum_over_processes
from facetclip.doctor import Finding
from facetclip.launch import make_accelerator
from facetclip.tables import text_table

PACKAGES = ("torch", "accelerate", "transformers", "facetclip")
MOST_SKEW = 1.0  # seconds between two machines' clocks
ROUNDS = 5
SIZES = {"cpu": 4 << 20, "cuda": 256 << 20}  # bytes of the all-reduce that is timed


@dataclass(frozen=True)
class Process:
    """What one process says of itself; `skew`: its clock minus the first one's, in seconds."""

    rank: int
    host: str
    device: str
    engine: str
    precision: str
    python: str
    versions: tuple[str, ...]
    skew: float


def examine_launch() -> tuple[list[Process], list[Finding]]:
    """What every process of this launch is, and what is wrong between them; the same on all. All call it."""
    accelerator = make_accelerator()
    device = accelerator.device
    sum_over_processes(torch.zeros(1, device=device))  # all are here now
    now = time.time()
    told = Process(
        rank=accelerator.process_index,
        host=socket.gethostname(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({os.cpu_count()} cores)",
        engine=accelerator.distributed_type.value,
        precision=accelerator.mixed_precision,
        python=platform.python_version(),
        versions=tuple(version(name) for name in PACKAGES),
        skew=now,
    )
    everyone = [Process(**each) for each in gather_objects(asdict(told))]
    first = everyone[0].skew
    everyone = [Process(**{**asdict(each), "skew": each.skew - first}) for each in everyone]
    findings = [_group(everyone), *_differences(everyone), _clocks(everyone)]
    if len(everyone) > 1:
        findings.append(_speed(device))
    accelerator.end_training()
    return everyone, findings


def _group(everyone: Sequence[Process]) -> Finding:
    hosts = len({each.host for each in everyone})
    return Finding("launch", f"{len(everyone)} processes on {hosts} machine(s) form one group")


def _differences(everyone: Sequence[Process]) -> list[Finding]:
    """Wrong wherever processes differ in what must be alike."""
    findings = []
    for name in ("engine", "precision", "python", "versions"):
        kinds: dict[str, list[int]] = {}
        for each in everyone:
            value = getattr(each, name)
            shown = ", ".join(map(" ".join, zip(PACKAGES, value, strict=True))) if name == "versions" else value
            kinds.setdefault(shown, []).append(each.rank)
        if len(kinds) == 1:
            findings.append(Finding(name, next(iter(kinds))))
            continue
        text = "; ".join(f"{shown} in process {', '.join(map(str, ranks))}" for shown, ranks in kinds.items())
        findings.append(Finding(name, text, "wrong", "start all processes from one environment and one configuration"))
    devices = {each.device for each in everyone}
    different = len(devices) > 1
    advice = "the slowest sets the pace"
    return [*findings, Finding("devices", ", ".join(sorted(devices)), "note" if different else "ok", advice)]


def _clocks(everyone: Sequence[Process]) -> Finding:
    apart = max(each.skew for each in everyone) - min(each.skew for each in everyone)
    state = "wrong" if apart > MOST_SKEW else "ok"
    return Finding("clocks", f"{apart:.3f} s apart", state, "let the machines set their clocks by NTP")


def _speed(device: torch.device) -> Finding:
    values = torch.zeros(SIZES[device.type] // 4, device=device)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first one connects
        started = time.perf_counter()
        sum_over_processes(values)
        values[0].item()  # the device is done
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds[1:])[ROUNDS // 2]
    size = SIZES[device.type]
    return Finding("all-reduce", f"{size >> 20} MiB in {1000 * median:.1f} ms, {size / median / 1e9:.2f} GB/s")


def launch_text(everyone: Sequence[Process]) -> str:
    """A table with a row for each process."""
    headers = ["process", "host", "device", "engine", "precision", "torch", "clock"]
    rows = [[str(p.rank), p.host, p.device, p.engine, p.precision, p.versions[0], f"{p.skew:+.3f} s"] for p in everyone]
    return text_table(headers, rows)
