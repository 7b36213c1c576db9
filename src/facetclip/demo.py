"""`facetclip demo`: the whole system on a rendered catalog, each step by the command that a user would type."""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from facetclip.arguments import here
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.report import EvalReport, summary_table

ROOT = Path(__file__).parents[2]
RUN = "training/runs/cookware.toml"
SCHEMA = "training/runs/cookware_schema.toml"
NAME = "facetclip-demo"


@dataclass(frozen=True)
class Step:
    """One command. `expected`: its exit codes that are good; `launched`: by accelerate, on several processes."""

    words: tuple[str, ...]
    expected: tuple[int, ...] = (0,)
    launched: bool = False

    def __str__(self) -> str:
        if self.launched:
            return (
                f"accelerate launch --config_file accelerate_configs/cpu.yaml training/{self.words[0]}.py "
                + " ".join(self.words[1:])
            )
        return " ".join(("facetclip", *self.words))


def steps(out: Path, items: int, processes: int) -> list[Step]:
    """What the demo types."""
    catalog, shards, run = out / "catalog", out / "shards", out / "run"
    table, model = str(catalog / "catalog.csv"), f"models:/{NAME}@champion"
    source = (table, "--schema", SCHEMA, "--images", str(catalog))
    shares = ("--shares", "0.6,0.1,0.3")
    places = (f"data.shards={shards}", f"output.folder={run}")
    drawn = ("--kind", "cookware", "--items", str(items), "--wrong", "0", "--out", str(catalog))
    return [
        Step(("render", *drawn)),
        Step(("check", *source, *shares)),
        Step(("shard", *source, *shares, "--resize", "256", "--out", str(shards))),
        Step(("evaluate", "starter", "--shards", str(shards), "--out", str(out / "zero_shot"))),
        Step(("train", RUN, *places), launched=processes > 1),
        Step(("evaluate", str(run / "model"), "--shards", str(shards), "--out", str(out / "report"))),
        Step(("promote", NAME, "--shards", str(shards)), expected=(0, 1)),
        Step(("extract", model, "--shards", str(shards), "--out", str(out / "scores"))),
    ]


def run_demo(args: argparse.Namespace) -> int:
    """Every step in turn; stops at the first that fails."""
    out = args.out.absolute()  # where the user is, not where the demo goes
    os.chdir(ROOT)
    if not Path(RUN).is_file():
        raise UserError(f"{ROOT}: no {RUN}; the demo runs in a clone of the project")
    begun = time.monotonic()
    for step in steps(out, args.items, args.processes):
        print(f"\n$ {step}", flush=True)
        started = time.monotonic()
        code = _launch(step, args.processes) if step.launched else main(list(step.words))
        if code not in step.expected:
            return code
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
    report = EvalReport.from_json((out / "report" / "report.json").read_text(encoding="utf-8"))
    print(f"\nOn the test split, {report.items} photos of {report.products} products, zero-shot against fine-tuned:\n")
    print(summary_table(report))
    print(f"\nreport   {out / 'report' / 'index.html'}")
    print(f"scores   {out / 'scores'}")
    print(
        "MLflow   mlflow ui --backend-store-uri " + os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{ROOT}/mlflow.db")
    )
    print(f"all of it took {time.monotonic() - begun:.0f} s")
    return 0


def _launch(step: Step, processes: int) -> int:
    """The script of a step under `accelerate launch`, in the environment of this interpreter."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    script = [f"training/{step.words[0]}.py", *step.words[1:]]
    return subprocess.run([*launcher, "--num_processes", str(processes), *script], check=False).returncode


def add_demo(parser: argparse.ArgumentParser) -> None:
    """The arguments of `facetclip demo`."""
    parser.add_argument("--out", type=here, default=Path("demo"), help="a folder for all of it")
    parser.add_argument("--items", type=int, default=600, help="photos in the rendered catalog")
    parser.add_argument("--processes", type=int, default=2, help="that train")


COMMANDS = {"demo": (add_demo, run_demo)}
