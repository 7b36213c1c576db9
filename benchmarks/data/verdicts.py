"""Who notices that a file is damaged: `python -m benchmarks.data.verdicts --photos DIR --peers DIR [--files 10000]`.

Seeded mutations of real JPEG, PNG and WEBP files are looked at one by one, by Pillow's own full load, by facetclip, and
by webdataset's and open_clip's decoders, each in a process that is watched. Counted: processes that died, looks of more
than 2 s or 512 MB, files refused, and files passed although the picture is another one (under 20 dB at 64 x 64).
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.mutations import mutated, sources
from benchmarks.data.peers import ROOT, interpreter, versions
from benchmarks.measuring import environment, write_result

RESULT = ROOT / "benchmarks" / "results" / "verdicts.json"
MOST_SECONDS, MOST_MEGABYTES = 2.0, 512
PATIENCE = 60.0  # seconds after which a look counts as hung
OTHER_PICTURE = 20.0  # dB
SEED = 5


class Watched:
    """A process that looks at files; started again when it dies or hangs."""

    def __init__(self, python: Path, who: str) -> None:
        self._command = [str(python), "-m", "benchmarks.data.looking", who]
        self._process: subprocess.Popen[str] | None = None

    def look(self, damaged: Path, whole: Path) -> dict[str, Any]:
        """One answer; `died` or `hung` where none came."""
        if self._process is None:
            path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
            environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
            )
        process = self._process
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{damaged}\t{whole}\n")
        process.stdin.flush()
        answered = select.select([process.stdout], [], [], PATIENCE)[0]
        line = process.stdout.readline() if answered else ""
        if line:
            return json.loads(line)
        self.close()
        return {"seconds": PATIENCE, "megabytes": 0, "said": "died" if answered else "hung", "near": None}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def look_at_all(
    lookers: dict[str, Watched], files: Sequence[tuple[str, bytes]], count: int, scratch: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each damaged file: its kind of damage, and each looker's answer."""
    for number, (suffix, data) in enumerate(files):
        (scratch / f"whole-{number}.{suffix}").write_bytes(data)
    seen = []
    for number in range(count):
        which, kind, data = mutated(files, SEED, number)
        damaged, whole = scratch / "damaged", scratch / f"whole-{which}.{files[which][0]}"
        damaged.write_bytes(data)
        answers = {who: looker.look(damaged, whole) for who, looker in lookers.items()}
        seen.append({"number": number, "kind": kind, "format": files[which][0], **answers})
        progress(number + 1)
    return seen


def counts(seen: Sequence[dict[str, Any]], who: str) -> dict[str, Any]:
    """What one looker did with all files."""
    answers = [each[who] for each in seen]
    passed = [each for each in seen if not each[who]["said"]]
    return {
        "died": sum(answer["said"] == "died" for answer in answers),
        "hung": sum(answer["said"] == "hung" for answer in answers),
        "over_2_seconds": sum(answer["seconds"] > MOST_SECONDS for answer in answers),
        "over_512_megabytes": sum(answer["megabytes"] > MOST_MEGABYTES for answer in answers),
        "most_seconds": max(answer["seconds"] for answer in answers),
        "most_megabytes": max(answer["megabytes"] for answer in answers),
        "refused": len(answers) - len(passed),
        "passed": len(passed),
        "passed_with_another_picture": sum(each[who]["near"] < OTHER_PICTURE for each in passed),
        "passed_where_pillow_refuses": sum(bool(each["pillow"]["said"]) for each in passed),
        "passed_by_format": dict(Counter(each["format"] for each in passed)),
        "passed_with_another_picture_by_format": dict(
            Counter(each["format"] for each in passed if each[who]["near"] < OTHER_PICTURE)
        ),
        "errors": dict(Counter(answer["said"].split(":")[0] for answer in answers if answer["said"]).most_common(12)),
    }


def main() -> None:
    """Look, count, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of .jpg files")
    parser.add_argument(
        "--peers", type=Path, help="where the peers' environments are or shall be; none are asked without"
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    photos = sorted(args.photos.rglob("*.jpg"))[:8]
    here = Path(sys.executable)
    lookers = {"pillow": Watched(here, "pillow"), "ours": Watched(here, "ours")}
    found: dict[str, str] = {}
    if args.peers:
        python = interpreter(args.peers, "clip")
        lookers |= {who: Watched(python, who) for who in ("webdataset", "open_clip")}
        found = versions(python, ["webdataset", "open_clip_torch", "pillow"])
    with tempfile.TemporaryDirectory() as scratch:
        seen = look_at_all(lookers, sources(photos), args.files, Path(scratch))
    for looker in lookers.values():
        looker.close()
    odd = [each for each in seen if each["ours"]["said"].startswith(("Assertion", "died", "hung"))]
    result = {
        "files": args.files,
        "seed": SEED,
        "damage": dict(Counter(each["kind"] for each in seen)),
        "looks": {who: counts(seen, who) for who in lookers},
        "ours_disagrees_with_itself": [(each["number"], each["ours"]["said"]) for each in odd],
        "environment": environment(["pillow", "simplejpeg", "numpy"]),
        "peers": found,
    }
    write_result(args.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
