"""What must be survived, in the numbers of the nightly tier: `python -m benchmarks.survival`.

Runs the nightly tests of kills, of a real SLURM, of two nodes with the cable pulled and of four processes, and writes
down how many of each there were and how they ended. A test that was skipped says why (SLURM, iproute2, root).
"""

import argparse
import collections
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.measuring import environment, write_result

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "survival.json"
FILES = ("test_survival", "test_slurm", "test_two_nodes", "test_trainer")


def ended(path: Path) -> dict[str, Any]:
    """Test -> how many cases passed, failed and were skipped (why), and their seconds, from pytest's JUnit file."""
    found: dict[str, dict[str, Any]] = collections.defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0})
    for case in ElementTree.parse(path).iter("testcase"):
        test = case.get("name", "").partition("[")[0]
        name = f"{case.get('classname', '').rpartition('.')[2]}::{test}"
        skipped, failed = case.find("skipped"), case.find("failure")
        failed = case.find("error") if failed is None else failed
        how = "skipped" if skipped is not None else "failed" if failed is not None else "passed"
        found[name][how] += 1
        found[name]["seconds"] = round(found[name].get("seconds", 0.0) + float(case.get("time", 0)), 1)
        if skipped is not None:
            found[name]["why"] = skipped.get("message", "")
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "nightly.xml"
        tests = [f"tests/{name}.py" for name in FILES]
        asked = ["-q", "--timeout", "3600", "-m", "nightly", f"--junitxml={report}", *tests]
        subprocess.run([sys.executable, "-m", "pytest", *asked], cwd=ROOT, check=False)
        found = ended(report)
    for name, counts in found.items():
        print(name, counts)
    write_result(args.out, {"environment": environment(("torch", "accelerate")), "ended": found})
    sys.exit(any(counts["failed"] for counts in found.values()))


if __name__ == "__main__":
    main()
