"""Every learner that is compared: from a start model and shards to probabilities of the test split."""

import contextlib
import io
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.quality.catalogs import Material
from benchmarks.quality.peers import Recipe, clip_loss, infonce, probe_of_each, trees_of_each
from torch import Tensor
from torch.nn import functional

from facetclip.batches import PixelReader
from facetclip.calibration import Calibration, probabilities
from facetclip.config import RunConfig, validated
from facetclip.feed import Portion
from facetclip.gradients import OPENNESS
from facetclip.launch import make_accelerator
from facetclip.model import AttributeReader, Outputs, load_model
from facetclip.runs import fit
from facetclip.schema import spans
from facetclip.splits import SPLITS
from facetclip.trainer import Trainer
from facetclip.validation import logits_of

AUGMENT = {"smallest_crop": 0.8, "brightness": 0.0}
AVERAGE = 0.98
VALIDATIONS = 6
CACHED_STEPS = {"probe": 1200, "prompt": 300}  # their photos pass the image tower once
NOISE = 0.2  # a tenth of the cells is wrong, and more of those of rare values, which are drawn more often


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share. `passes`: photos through the image tower while training."""

    material: Material
    work: Path
    seed: int
    passes: int
    batch: int
    rates: Mapping[str, float]
    open_clip: Path

    @property
    def steps(self) -> int:
        """Updates of an arm whose image tower learns."""
        return self.passes // self.batch


Reading = dict[str, np.ndarray]  # attribute -> probabilities [n, values]
Arm = Callable[[Setting], Reading]


def ours(mode: str, **changes: Mapping[str, Any]) -> Arm:
    """facetclip with a tuning mode; `changes`: keys of sections of the run file."""
    return lambda setting: _trained(run_of(setting, mode, changes), Trainer, setting)


def run_of(setting: Setting, mode: str, changes: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    out = setting.work / f"run-{os.getpid()}"
    shutil.rmtree(out, ignore_errors=True)
    steps = CACHED_STEPS.get(mode, setting.steps)
    rate = {"lr": setting.rates[mode]} if mode in setting.rates else {}
    sections: dict[str, dict[str, Any]] = {
        "data": {"shards": str(setting.material.index.folder), "features": str(setting.work / "features")},
        "model": {"start": "starter"},
        "train": {
            "steps": steps,
            "batch": setting.batch,
            "seed": setting.seed,
            "average": AVERAGE,
            "log_every": 10_000,
        },
        "tuning": {"mode": mode},
        "optimizer": {"weight_decay": 0.1, **rate},
        "augment": AUGMENT,
        "validation": {"every": max(1, steps // VALIDATIONS)},
        "checkpoint": {"every": 100_000},
        "output": {"folder": str(out)},
    }
    for name, keys in changes.items():
        sections[name] = sections.get(name, {}) | dict(keys)
    return validated(RunConfig, sections, "arm")


def _trained(run: RunConfig, kind: type[Trainer], setting: Setting) -> Reading:
    reader, logits = model_of(run, kind, setting)
    return read(setting, logits, reader.calibration)


def model_of(run: RunConfig, kind: type[Trainer], setting: Setting) -> tuple[AttributeReader, np.ndarray]:
    """The model that a run ends with, and its logits of the test split [n, values of all attributes]."""
    with contextlib.redirect_stdout(io.StringIO()):
        fit(kind(run, make_accelerator()))
    reader = load_model(str(Path(run.output.folder) / "model"))
    return reader, logits_of(reader, photos_of(setting, reader, "test"), setting.material.index.rows("test")).numpy()


def photos_of(setting: Setting, reader: AttributeReader, *splits: str) -> PixelReader:
    """The photos of the catalog as the model takes them; those of `splits` are decoded once."""
    index = setting.material.index
    often = sum(len(index.rows(split)) for split in splits)
    return PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit, often=often)


def read(setting: Setting, logits: np.ndarray, calibration: Mapping[str, Calibration]) -> Reading:
    attributes = setting.material.index.schema.attributes
    parts = spans([len(attribute.values) for attribute in attributes.values()])
    return {
        name: probabilities(logits[:, part], calibration.get(name, Calibration()), multi_valued=attribute.multi_valued)
        for part, (name, attribute) in zip(parts, attributes.items(), strict=True)
    }


def _questions(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """The summed binary losses [n] of asking of every value whether it is there; an empty cell answers all with no.

    The logits start where a value in so many is there by the same shift as in the sigmoid form of the contrastive loss.
    """
    targets = functional.one_hot(labels.clamp(min=0), logits.shape[1]).float() * (labels[:, None] >= 0)
    shifted = logits - shift_of_questions(logits.shape[1], scale.detach())
    return functional.binary_cross_entropy_with_logits(shifted, targets, reduction="none").sum(dim=1)


def shift_of_questions(values: int, scale: Tensor) -> Tensor:
    """What is taken off an attribute's logits to ask of each of its `values` whether it is there."""
    return OPENNESS * scale + math.log(values - 1)


class MissingIsNo(Trainer):
    """The loss of those who read an empty cell as "no"."""

    def _loss(self, outputs: Outputs, labels: Tensor, portion: Portion) -> Tensor:
        each = [_questions(logits, labels[:, n], self.reader.scale) for n, logits in enumerate(outputs.logits)]
        return torch.stack(each).sum() / (self.run.train.batch * len(each))


class MaskedQuestions(Trainer):
    """The same questions, but none where the table is silent: what masking alone is worth."""

    def _loss(self, outputs: Outputs, labels: Tensor, portion: Portion) -> Tensor:
        each = [_questions(logits, labels[:, n], self.reader.scale) for n, logits in enumerate(outputs.logits)]
        return (torch.stack(each, dim=1) * (labels >= 0)).sum() / max(1.0, portion.count)


def filled(kind: type[Trainer]) -> Arm:
    """`full` with the loss of `kind`; read by a softmax over each attribute's values, as ours."""
    return lambda setting: _trained(run_of(setting, "full", {"sampling": OURS["sampling"]}), kind, setting)


def captions_infonce(setting: Setting) -> Reading:
    """One caption a photo and open_clip's loss; calibrated as ours."""
    index = setting.material.index
    reader = load_model("starter", index.schema)
    run = run_of(setting, "full", {})
    recipe = Recipe(
        steps=setting.steps,
        batch=setting.batch,
        rate=setting.rates["infonce"],
        seed=setting.seed,
        average=AVERAGE,
        augmentation=run.augment,
        every=max(1, setting.steps // VALIDATIONS),
    )
    logits, kept = infonce(reader, index, photos_of(setting, reader, *SPLITS), recipe, clip_loss(setting.open_clip))
    return read(setting, logits, kept.calibration)


def separate_probes(setting: Setting) -> Reading:
    """One scikit-learn logistic regression an attribute on the start model's features."""
    index = setting.material.index
    reader = load_model("starter", index.schema)
    pixels = photos_of(setting, reader, *SPLITS)
    features = {split: _features(reader, pixels, index.rows(split)) for split in SPLITS}
    return probe_of_each(features, index)


def trees_on_pixels(setting: Setting) -> Reading:
    """No CLIP: extra trees on small pictures."""
    index = setting.material.index
    rows = np.arange(len(index.item_ids))
    return trees_of_each(PixelReader(index, 32, "pad").pixels(rows).numpy(), index)


@torch.no_grad()
def _features(reader: AttributeReader, pixels: PixelReader, rows: np.ndarray) -> np.ndarray:
    parts = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    return np.concatenate([reader.embed_images(pixels.pixels(part)).numpy() for part in parts])


OURS = {"sampling": {"strategy": "square_root"}, "objective": {"noise": NOISE}}
NATURAL = {"sampling": {"strategy": "natural"}}
ADJUSTED = NATURAL | {"objective": {"logit_adjustment": 1.0}}
ARMS: dict[str, Arm] = {
    "zero-shot": ours("zero_shot"),
    "captions + InfoNCE": captions_infonce,
    "a probe for each attribute": separate_probes,
    "trees on raw pixels": trees_on_pixels,
    "full": ours("full", **OURS),
    "missing counts as no": filled(MissingIsNo),
    "masked yes or no": filled(MaskedQuestions),
    "probe": ours("probe", **OURS),
    "prompt": ours("prompt", **OURS),
    "lora": ours("lora", **OURS),
    "image_tower": ours("image_tower", **OURS),
    "last_blocks": ours("last_blocks", **OURS),
    "probe, natural": ours("probe", **NATURAL),
    "probe, natural, adjusted": ours("probe", **ADJUSTED),
    "probe, balanced": ours("probe", sampling={"strategy": "balanced"}),
    "full, natural": ours("full", **NATURAL),
    "full, natural, adjusted": ours("full", **ADJUSTED),
    "full, balanced": ours("full", sampling={"strategy": "balanced"}),
}
