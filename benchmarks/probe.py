"""What cached features are worth: an epoch of `probe` with and without them, the image tower frozen in both.

`python -m benchmarks.probe [--items 2048] [--rounds 5] [--out FILE]`: rendered garments; the starter, and a tower of
the size of ViT-B/32 with random weights on a sixteenth of the photos. Interleaved, with a control of cached against
cached.
"""

import argparse
import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import environment, interleaved, ratio, wall_seconds, write_result
from benchmarks.quality.catalogs import GARMENTS_SCHEMA

from facetclip.batches import ahead
from facetclip.catalog import read_catalog
from facetclip.config import NewModel, RunConfig, validated
from facetclip.launch import make_accelerator
from facetclip.model import save_model
from facetclip.render import RenderSpec, render_catalog
from facetclip.schema import read_schema
from facetclip.scratch import new_model
from facetclip.shards import ShardSpec, build_shards
from facetclip.splits import Shares
from facetclip.trainer import Trainer

B32 = NewModel(
    image_size=224,
    patch_size=32,
    vision_width=768,
    vision_layers=12,
    vision_heads=12,
    text_width=512,
    text_layers=12,
    text_heads=8,
    embedding=512,
)


def shards_of(folder: Path, items: int) -> Path:
    """Shards of so many rendered photos, nearly all for training."""
    catalog = render_catalog(RenderSpec("garments", items, size=224), folder / f"catalog-{items}", workers=2)
    spec = ShardSpec(folder / f"shards-{items}", images=catalog.parent, shares=Shares(0.96, 0.02, 0.02))
    build_shards(read_catalog(str(catalog)), read_schema(GARMENTS_SCHEMA), spec)
    return spec.out


def trainer_of(folder: Path, shards: Path, start: str, *, cache: bool, batch: int) -> Trainer:
    """A probe that is ready to train, its features computed."""
    sections: dict[str, Any] = {
        "data": {"shards": str(shards), "features": str(folder / "features")},
        "model": {"start": start},
        "train": {"steps": 10_000, "batch": batch},
        "tuning": {"mode": "probe", "cache": cache},
        "sampling": {"strategy": "natural"},
        "output": {"folder": str(folder / f"run-{cache}-{batch}")},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        return Trainer(validated(RunConfig, sections, "probe"), make_accelerator())


def epoch(trainer: Trainer) -> None:
    """All batches of an epoch, as `Trainer.train` runs them."""
    planned = trainer.feed.planned(0, trainer.feed.steps_per_epoch)
    for portion in ahead(partial(trainer.feed.portion, trainer.inputs), planned):
        trainer.train_step(portion)


def compare(folder: Path, shards: Path, start: str, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch and their ratios."""
    cached, fresh = (trainer_of(folder, shards, start, cache=cache, batch=batch) for cache in (True, False))
    taken = interleaved(
        {
            "not cached": lambda: wall_seconds(lambda: epoch(fresh)),
            "cached": lambda: wall_seconds(lambda: epoch(cached)),
            "control": lambda: wall_seconds(lambda: epoch(cached)),
        },
        rounds,
    )
    return {
        "photos": len(cached.feed.rows),
        "batch": batch,
        "seconds": {name: [round(each, 4) for each in values] for name, values in taken.items()},
        "times faster": ratio(taken["not cached"], taken["cached"]),
        "control": ratio(taken["control"], taken["cached"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probe.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = read_schema(GARMENTS_SCHEMA)
        large = save_model(new_model(B32, schema, ["a red top"], seed=0), folder / "b32")
        for title, items, start in (("starter", args.items, "starter"), ("ViT-B/32", args.items // 16, str(large))):
            shards = shards_of(folder, items)
            for batch in (64, 256) if start == "starter" else (64,):
                results[f"{title}, batch {batch}"] = found = compare(folder, shards, start, batch, args.rounds)
                print(title, batch, found["times faster"], "control", found["control"], flush=True)
    write_result(args.out, {"environment": environment(("torch", "transformers", "numpy")), "results": results})


if __name__ == "__main__":
    main()
