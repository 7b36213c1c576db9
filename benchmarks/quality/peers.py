"""What people use today, on the same start, shards, photos, budget and choice of the best weights on validation."""

import importlib.util
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression

from facetclip.augmentation import augment, crops
from facetclip.averaging import MovingAverage
from facetclip.batches import PixelReader, ahead, uniforms
from facetclip.calibration import fit_calibration, probabilities
from facetclip.captions import captions_of
from facetclip.config import Augmentation
from facetclip.index import ShardIndex
from facetclip.metrics import f1_of_values, listed_values, read_values
from facetclip.model import AttributeReader
from facetclip.schedule import learning_rate
from facetclip.schema import Attribute
from facetclip.validation import Judgement, judge, logits_of

BINS = 8  # of each colour channel, in the histogram
TREES = 300
CS = (0.01, 0.1, 1.0, 10.0, 100.0)


def clip_loss(folder: Path) -> Any:
    """open_clip's own `ClipLoss`, from the file of it in `folder` (`pip install --no-deps --target FOLDER
    open_clip_torch`): its package needs torchvision, the loss needs torch alone."""
    path = folder / "open_clip" / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip.loss", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is not there; pip install --no-deps --target {folder} open_clip_torch")
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["open_clip.loss"] = module
    spec.loader.exec_module(module)
    return module.ClipLoss()


@dataclass(frozen=True)
class Recipe:
    """How long the contrastive peer trains; the rate is chosen among several on validation, as ours is."""

    steps: int
    batch: int
    rate: float
    seed: int
    average: float
    augmentation: Augmentation
    every: int


def infonce(
    reader: AttributeReader, index: ShardIndex, pixels: PixelReader, recipe: Recipe, loss: Any
) -> tuple[np.ndarray, Judgement]:
    """Logits [n, values] of the test split by the open_clip recipe, and the judgement on validation they were kept for.

    One caption a photo, made of its known values; each epoch in a new random order; a symmetric softmax over the batch;
    AdamW (0.9, 0.98) with decay 0.1 on matrices, warm-up and cosine; the weights' moving average, the best on
    validation by the same calibrated loss as ours. Photos without any label have no caption and are left out.
    """
    labels = index.label_matrix(index.rows("train"))
    rows = index.rows("train")[(labels >= 0).any(axis=1)]
    random = np.random.default_rng(recipe.seed)
    order = np.concatenate([random.permutation(rows) for _ in range(-(-recipe.steps * recipe.batch // len(rows)))])
    matrices = [weight for weight in reader.clip.parameters() if weight.ndim > 1]
    others = [weight for weight in reader.clip.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), eps=1e-6)
    average = MovingAverage(reader, recipe.average)
    validation, best, logits = index.rows("validation"), Judgement(math.inf, {}, {}), np.zeros(0)
    known = index.label_matrix(validation)
    batches = [order[start : start + recipe.batch] for start in range(0, recipe.steps * recipe.batch, recipe.batch)]
    drawn = [
        (rows, uniforms(recipe.seed, step * np.int64(recipe.batch) + np.arange(len(rows)), 5))
        for step, rows in enumerate(batches)
    ]
    spec = recipe.augmentation
    prepared = ahead(lambda each: (pixels.batch(each[0], crops(each[1], spec)), torch.from_numpy(each[1])), drawn)
    for step, (batch, draws) in enumerate(prepared):
        reader.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, peak=recipe.rate, final=0.0, warmup=recipe.steps // 10, steps=recipe.steps
            )
        photos = reader.embed_images(augment(batch.inputs, draws, spec, reader.mean, reader.std))
        texts = reader.embed_texts(reader.tokenise(captions_of(index, batch.rows, "values", reader.schema)))
        optimizer.zero_grad()
        loss(photos, texts, reader.scale[0]).backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        average.update(step + 1)
        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            with average.applied():
                reader.train()  # forgets the prompt features of other weights
                judgement = judge(logits_of(reader, pixels, validation).numpy(), known, index.schema)
                if (judgement.loss or math.inf) < (best.loss or math.inf):
                    best, logits = judgement, logits_of(reader, pixels, index.rows("test")).numpy()
    return logits, best


def trees_of_each(pixels: np.ndarray, index: ShardIndex) -> dict[str, np.ndarray]:
    """Probabilities [n, values] of the test split by extra trees on raw pixels and a colour histogram: what needs no
    CLIP at all. `pixels`: uint8 [items, 3, side, side] of the whole index; they learn from train and validation."""
    planes = pixels.astype(np.int64) // (256 // BINS)
    colours = (planes[:, 0] * BINS + planes[:, 1]) * BINS + planes[:, 2]
    histograms = [np.bincount(each.ravel(), minlength=BINS**3) for each in colours]
    features = np.concatenate([pixels.reshape(len(pixels), -1), np.stack(histograms)], axis=1)
    known = np.concatenate([index.rows("train"), index.rows("validation")])
    return {
        name: _trees(features, index.labels[name], known, index.rows("test"), len(attribute.values))
        for name, attribute in index.schema.attributes.items()
    }


def _trees(features: np.ndarray, labels: np.ndarray, known: np.ndarray, test: np.ndarray, values: int) -> np.ndarray:
    rows = known[labels[known] >= 0]
    trees = ExtraTreesClassifier(TREES, random_state=0).fit(features[rows], labels[rows])
    probabilities = np.zeros((len(test), values))
    probabilities[:, trees.classes_] = trees.predict_proba(features[test])
    return probabilities


def probe_of_each(features: dict[str, np.ndarray], index: ShardIndex) -> dict[str, np.ndarray]:
    """Probabilities [n, values] of the test split by one logistic regression an attribute on frozen features.

    `features`: split -> [n, d]. C, and whether classes are weighed by how rare they are, are those of the highest
    macro-F1 on validation; the probabilities are calibrated there too.
    """
    return {name: _probe(features, index, name, attribute) for name, attribute in index.schema.attributes.items()}


def _probe(features: dict[str, np.ndarray], index: ShardIndex, name: str, attribute: Attribute) -> np.ndarray:
    labels = {split: index.labels[name][index.rows(split)] for split in features}
    known = {split: column >= 0 for split, column in labels.items()}
    scored = partial(_logits, values=len(attribute.values))
    best, chosen = -1.0, None
    for c in CS:
        for weights in (None, "balanced"):
            model = LogisticRegression(C=c, class_weight=weights, max_iter=2000)
            model.fit(features["train"][known["train"]], labels["train"][known["train"]])
            listed = listed_values(attribute, labels["validation"][known["validation"]])
            read = read_values(attribute, scored(model, features["validation"][known["validation"]]))
            score = float(f1_of_values(listed, read)[listed.any(axis=0) | read.any(axis=0)].mean())
            if score > best:
                best, chosen = score, model
    every = scored(chosen, features["validation"])
    listed = listed_values(attribute, labels["validation"])
    calibration = fit_calibration(every[known["validation"]], listed[known["validation"]], multi_valued=False)
    return probabilities(scored(chosen, features["test"]), calibration, multi_valued=False)


def _logits(model: Any, features: np.ndarray, values: int) -> np.ndarray:
    """log probabilities [n, values]; a value that training never saw has almost none."""
    logits = np.full((len(features), values), -30.0)
    logits[:, model.classes_] = model.predict_log_proba(features)
    return logits
