"""`facetclip doctor`: what this machine has, what is wrong with it, and what to do."""

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from facetclip.errors import redacted
from facetclip.tracking import tracking_uri, unreachable

PACKAGE = Path(__file__).parent
CONSTRAINTS = PACKAGE.parents[1] / "constraints.txt"  # there in a clone, absent in an installed package
LEAST_DISK, LEAST_MEMORY = 2 << 30, 3 << 30  # what `make demo` needs
ANSWER_SECONDS = 2.5
EXTRAS = {"deepspeed": "cluster"}  # package -> extra of pyproject.toml that brings it
State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found and, unless `state` is ok, what to do about it."""

    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def examine() -> list[Finding]:
    """Everything this package leans on, within some seconds; nothing is changed."""
    return [
        Finding("python", f"{platform.python_version()}, {sys.prefix}"),
        *_packages(_requirements(), pinned()),
        _torchvision(),
        _devices(),
        _memory(),
        _disk(Path.cwd()),
        _folder(Path.cwd()),
        _compiler(),
        _mlflow(tracking_uri()),
        _starter(PACKAGE / "starter"),
    ]


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong; notes do not count."""
    return all(finding.state != "wrong" for finding in findings)


def render_text(findings: Sequence[Finding]) -> str:
    """A table of all findings, then what is wrong, then what is worth knowing.

    >>> print(render_text([Finding("disk", "1 GiB free", "wrong", "free some")]))
    what  found
    ----  ----------
    disk  1 GiB free
    <BLANKLINE>
    wrong: disk: 1 GiB free; free some
    """
    rows = [[finding.name, finding.found] for finding in findings]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'what':{width}}  found", f"{'-' * width}  {'-' * 10}"]
    lines += [f"{name:{width}}  {found}" for name, found in rows] + [""]
    for state in ("wrong", "note"):
        told = [finding for finding in findings if finding.state == state]
        lines += [f"{state}: {finding.name}: {finding.found}; {finding.advice}" for finding in told]
    return "\n".join(lines if len(lines) > len(rows) + 3 else [*lines, "Nothing is wrong."])


def pinned(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Package -> the version that this code is tested with; nothing where the file is not there."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = [line.split("==") for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    return {canonicalize_name(name): found for name, found in pairs}


def _requirements() -> list[str]:
    """What this package says it needs; without its metadata (run from the source) only that it has none."""
    try:
        return requires("facetclip") or []
    except PackageNotFoundError:
        return ["facetclip"]


def _packages(requirements: Sequence[str], tested: dict[str, str]) -> Iterator[Finding]:
    """A finding for each package that facetclip itself asks for."""
    for text in requirements:
        requirement = Requirement(text)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if not optional or requirement.name in EXTRAS:
            yield _package(requirement, tested.get(canonicalize_name(requirement.name)), optional=optional)


def _package(requirement: Requirement, tested: str | None, *, optional: bool) -> Finding:
    name = requirement.name
    try:
        found = version(name)
    except PackageNotFoundError:
        if optional:
            return Finding(name, "not installed", "note", f"pip install 'facetclip[{EXTRAS[name]}]' if you need it")
        return Finding(name, "not installed", "wrong", "make setup, or pip install -c constraints.txt -e .")
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(name, found, "wrong", f"expected {requirement.specifier}; make setup installs what fits")
    if tested and found.partition("+")[0] != tested:
        return Finding(name, found, "note", f"this code is tested with {tested}")
    return Finding(name, found)


def _torchvision() -> Finding:
    """Not needed; but an installed one that does not fit the torch beside it breaks every import of transformers."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "not installed, as it should be")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # RuntimeError, ImportError, OSError: depends on what does not fit
        found = f"does not load: {str(error).partition(chr(10))[0][:80]}"
        return Finding(
            "torchvision", found, "wrong", "pip uninstall torchvision: with it transformers cannot be imported"
        )
    return Finding("torchvision", f"{version('torchvision')}, loads")


def _devices() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"{cores} processor cores, {torch.get_num_threads()} threads a process"]
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found += [f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices]
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        advice = f"torch {torch.__version__} cannot use it: make setup installs one that can, or mend the driver"
        return Finding("devices", "; ".join(found) + "; an NVIDIA GPU", "wrong", advice)
    return Finding("devices", "; ".join(found))


def _memory() -> Finding:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    found = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of it unused"
    if total < LEAST_MEMORY:
        return Finding("memory", found, "note", f"the demo takes up to {LEAST_MEMORY / 2**30:.0f} GiB")
    return Finding("memory", found)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < LEAST_DISK:
        return Finding(
            "disk", found, "wrong", f"free some: checkpoints and shards need {LEAST_DISK / 2**30:.0f} GiB or more"
        )
    return Finding("disk", found)


def _folder(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding("folder", f"{folder} can be written")
    except OSError as error:
        advice = "run facetclip where you may write, for MLflow's store and the run folders"
        return Finding("folder", f"{folder} cannot be written ({error.strerror})", "wrong", advice)


def _compiler() -> Finding:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if found:
        return Finding("compiler", found)
    return Finding("compiler", "no g++", "note", "only DeepSpeed without a GPU needs it: apt-get install g++")


def _mlflow(uri: str) -> Finding:
    shown = redacted(uri)
    problem = unreachable(uri) or _unhealthy(uri)
    if problem is None:
        return Finding("mlflow", shown)
    advice = "start it or mend MLFLOW_TRACKING_URI; until then trainings run, and `facetclip sync RUN` sends them later"
    return Finding("mlflow", f"{shown}: {problem}", "wrong", advice)


def _unhealthy(uri: str) -> str | None:
    """What a server says of itself; None where all is well, or it is no server."""
    if not uri.startswith(("http://", "https://")):
        return None
    scheme, _, rest = uri.partition("://")
    address = f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403) else f"it answers {error.code}; is it an MLflow server?"
    except (OSError, ValueError) as error:
        return f"no answer ({getattr(error, 'reason', error)})"


def _starter(folder: Path) -> Finding:
    weights = folder / "model.safetensors"
    if weights.is_file():
        return Finding("starter", f"{folder} ({weights.stat().st_size / 2**20:.1f} MiB)")
    advice = "reinstall facetclip, or train it: see training/runs/starter.toml"
    return Finding("starter", f"no model in {folder}", "wrong", advice)
