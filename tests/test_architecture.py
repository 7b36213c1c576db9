"""Imports go down only, and each heavy library has one owner."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from facetclip.registry import SERVED_WITH

SOURCE = Path(__file__).parents[1] / "src" / "facetclip"
LAYERS = [
    {"demo"},
    {"cli"},
    {"data_commands", "model_commands", "study_commands", "review_commands", "audit_commands"},
    {"studies", "audit"},
    {"runs"},
    {"promotion", "pyfunc_model"},
    {
        "registry",
        "trainer",
        "promotion_log",
        "extract",
        "evaluate",
        "shards",
        "checks",
        "infer",
        "render",
        "doctor",
        "dist_doctor",
        "review",
        "corrections",
        "inspection",
        "label_next",
        "filling",
        "onnx_export",
    },
    {"launch", "finishing", "features", "step_log", "start", "updates", "repairs", "gradients"},
    {"zero", "claims", "indexing"},
    {"joining"},
    {"engine", "slices"},
    {"feed"},
    {"scores", "sources", "validation", "batches", "model", "scratch", "tuning", "losses", "optimizers", "averaging"}
    | {"checkpoint", "collectives", "captions", "tracking", "agreement", "goodput"}
    | {"report", "report_page", "report_pictures", "study_pictures", "findings", "slicing", "mistakes"}
    | {
        "augmentation",
        "photo_flags",
        "near_duplicates",
        "memory",
        "model_card",
        "pictures",
        "spool",
        "tars",
        "references",
        "workers",
        "progress",
        "lease",
        "downloads",
        "queues",
        "attempts",
        "interruption",
        "vessels",
        "garments",
        "figures",
        "drawing",
    },
    {"policy", "towers"},
    {"squares"},
    {"index", "images"},
    {"prefetch"},
    {"colours", "letters", "store", "outputs"},
    {"cache", "remote"},
    {"intervals"},
    {"coverage"},
    {"abstention"},
    {
        "splits",
        "mix",
        "sampling",
        "windows",
        "metrics",
        "calibration",
        "probing",
        "learning_curve",
        "power_law",
        "schedule",
        "presets",
        "alarms",
        "fingerprints",
        "hamming",
    },
    {"labels", "suggestions", "answering"},
    {"catalog"},
    {"rules"},
    {"schema"},
    {"config"},
    {"fetching"},
    {"files", "faults", "page", "addresses", "portions", "tables", "spreadsheets", "arguments", "cells"},
    {"errors", "__init__"},
]
OWNERS = {
    "mlflow": {"tracking", "registry", "pyfunc_model"},
    "webdataset": {"shards", "tars"},
    "datasets": {"catalog"},
    "fsspec": {"remote"},
    "aiohttp": {"remote"},
    "pyarrow": {
        "cells",
        "catalog",
        "labels",
        "corrections",
        "filling",
        "splits",
        "shards",
        "slices",
        "indexing",
        "joining",
        "updates",
        "tars",
        "index",
        "sources",
        "extract",
        "near_duplicates",
    },
    "accelerate": {"trainer", "launch", "engine", "zero", "step_log", "features", "extract", "runs"} | {"audit"},
    "deepspeed": {"zero"},
    "peft": {"tuning"},
    "transformers": {"model", "scratch", "launch"},
    "tokenizers": {"scratch"},
    "PIL": {"images", "pictures", "colours", "drawing", "vessels", "garments", "render"},
    "simplejpeg": {"images"},
    "matplotlib": {"report_pictures", "study_pictures"},
    "jinja2": {"page"},
    "rapidfuzz": {"infer"},
    "sklearn": {"probing"},
    "http": {"fetching"},
    "onnx": {"onnx_export"},
    "onnxscript": {"onnx_export"},
    "onnxruntime": set(),
}
NEVER = {"pickle", "dill", "joblib", "torchvision", "marshal", "shelve"}
MODULES = sorted(SOURCE.glob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether inside a function) for each import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "facetclip":
            names = [alias.name for alias in node.names if not alias.name.startswith("__")]
            found += [(f"facetclip.{name}", id(node) in inside) for name in names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", id(node) in inside))
    return found


def layer(module: str) -> int:
    return next(place for place, names in enumerate(LAYERS) if module in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down_only_and_none_hide_in_functions(path: Path) -> None:
    assert any(path.stem in names for names in LAYERS), f"{path.stem} belongs to no layer"
    for name, hidden in imports(path):
        if name.startswith("facetclip."):
            target = name.split(".")[1]
            assert not hidden, f"{path.name} hides its import of {target} in a function"
            assert layer(path.stem) <= layer(target), f"{path.name} imports {target}, which lies above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_heavy_library_has_its_owners(path: Path) -> None:
    for name, _ in imports(path):
        top = name.split(".")[0]
        assert top not in NEVER, f"{path.name} imports {top}"
        assert path.stem in OWNERS.get(top, {path.stem}), f"{path.name} imports {top}, owned by {sorted(OWNERS[top])}"


def test_no_two_modules_import_each_other() -> None:
    graph = {
        path.stem: {name.split(".")[1] for name, _ in imports(path) if name.startswith("facetclip.")}
        for path in MODULES
    }

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph.get(name, set())
        return seen

    assert [name for name in graph if name in reachable(name)] == []


def test_the_data_verbs_start_without_torch() -> None:
    heavy = {"torch", "transformers", "mlflow", "accelerate"}
    todo, seen = ["cli", "data_commands"], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, hidden in imports(SOURCE / f"{module}.py"):
            assert hidden or name.split(".")[0] not in heavy, f"{module} imports {name}"
            if name.startswith("facetclip."):
                todo.append(name.split(".")[1])
    assert "shards" in seen


def test_scripts_are_thin() -> None:
    root = SOURCE.parents[1]
    for path in [*(root / "training").glob("*.py"), *(root / "data_prep").glob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 40, path
        assert any("facetclip.cli" in line for line in lines), path


def test_a_served_model_brings_all_that_its_code_imports() -> None:
    todo, seen, needed = ["pyfunc_model"], set(), set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, hidden in imports(SOURCE / f"{module}.py"):
            top = name.split(".")[0]
            if top == "facetclip":
                todo.append(name.split(".")[1] if "." in name else "__init__")
            elif not hidden and top not in sys.stdlib_module_names:
                needed.add(top)
    distributions = packages_distributions()
    served = {"mlflow", *SERVED_WITH}
    assert {top for top in needed if not served & {name.lower() for name in distributions[top]}} == set()
