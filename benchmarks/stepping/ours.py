"""facetclip's own loop, `Trainer._loop`, over photos that lie on the device already."""

import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benchmarks.stepping.shapes import Shape, here, photos, transformers_config
from benchmarks.stepping.spec import Spec
from torch import Tensor
from torch.nn import functional

from facetclip.batches import Batch, Portion
from facetclip.config import NewModel, RunConfig, validated
from facetclip.index import ShardIndex, open_index, write_index
from facetclip.interruption import listening
from facetclip.launch import make_accelerator
from facetclip.model import AttributeReader, save_model
from facetclip.progress import watched
from facetclip.schema import NOT_APPLICABLE, UNLABELLED, Schema, read_schema
from facetclip.scratch import new_model
from facetclip.store import Shard
from facetclip.trainer import Trainer

SCHEMA = here() / "benchmarks" / "quality" / "garments_schema.toml"  # 5 attributes, 34 values
BATCHES = 2  # different ones, in turn


class Portioned(Trainer):
    """A trainer whose loop stops after so many steps, and goes on when it is called again.

    Between two steps it calls `between`.
    """

    limit = 0
    between: Callable[[], object] = staticmethod(lambda: None)

    @property
    def patience_is_over(self) -> bool:
        self.between()
        return self.state.step >= self.limit

    def save(self) -> None:
        """Nothing: steps are measured, and the loop saves where it stops."""

    def go_on(self, steps: int) -> None:
        self.limit = self.state.step + steps
        with listening() as self.interruption, watched(self.progress, self.run.watch.timeout):
            self._loop()


class Resident:
    """Stands where photos are read: the same few batches of noise, on the device, as uint8."""

    def __init__(self, index: ShardIndex, pixels: Tensor, batch: int) -> None:
        self.index, self.turn = index, 0
        self.batches = pixels.split(batch)

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        return iter(portions)

    def batch(self, rows: np.ndarray, crops: np.ndarray | None = None) -> Batch:
        self.turn += 1
        pixels = self.batches[self.turn % len(self.batches)][: len(rows)]
        return Batch(rows, pixels, torch.from_numpy(self.index.label_matrix(rows)))


def synthetic_index(folder: Path, items: int) -> ShardIndex:
    """Rows without photos: half the cells empty, sleeves and necklines only where the schema lets them."""
    schema, draw = read_schema(SCHEMA), np.random.default_rng(0)
    labels = {}
    for name, attribute in schema.attributes.items():
        drawn = draw.integers(0, len(attribute.values), items)
        labels[name] = np.where(draw.random(items) < 0.5, UNLABELLED, drawn).astype(np.int16)
        if attribute.applies_where:
            labels[name][draw.random(items) < 0.2] = NOT_APPLICABLE
    place = np.arange(items)
    columns = {
        "place": place,
        "item": pa.array([f"item {number}" for number in place]),
        "product_id": pa.array([f"P{number}" for number in place]),
        "product": place,
        "split": np.where(place % 100 == 99, 1, 0),
        **{f"label:{name}": column for name, column in labels.items()},
        "shard": np.zeros(items),
        "offset": place,
        "length": np.ones(items),
        "checksum": np.full(items, zlib.crc32(b"")),
        "phash": np.zeros(items),
        "tint": np.zeros(items),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shard-000000.tar").write_bytes(b"")
    write_index(folder, pa.table(columns), schema, [Shard("shard-000000.tar", items, 0, "")], {})
    return open_index(folder)


def start_folder(shape: Shape, schema: Schema, folder: Path) -> Path:
    """A model folder of that shape with random weights, whose tokenizer knows each word of the prompts as one token,
    as CLIP's does."""
    from transformers import CLIPModel

    prompts = [text for attribute in schema.attributes.values() for each in attribute.training_prompts for text in each]
    small = NewModel(
        image_size=shape.size,
        patch_size=shape.patch,
        vision_width=8,
        vision_layers=1,
        vision_heads=1,
        text_width=8,
        text_layers=1,
        text_heads=1,
        embedding=8,
        vocabulary=2000,
        positions=shape.positions,
    )
    reader = new_model(small, schema, [*prompts, *(f"{text} {text}" for text in prompts)], seed=0)
    config, tokens = transformers_config(shape), reader.clip.config.text_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, name, getattr(tokens, name))
    config.text_config.vocab_size = max(shape.vocabulary, tokens.vocab_size)
    torch.manual_seed(0)
    whole = AttributeReader(CLIPModel(config), reader.tokenizer, schema, reader.preprocessing)
    return save_model(whole, folder)


def run_of(spec: Spec, start: Path, out: Path) -> RunConfig:
    sections: dict[str, dict[str, Any]] = {
        "data": {"shards": "synthetic"},
        "model": {"start": str(start)},
        "train": {"steps": 1_000_000, "batch": spec.batch},
        "tuning": {"mode": "image_tower" if spec.locked else "full"},
        "sampling": {"strategy": "natural"},
        "validation": {"every": 1_000_000},
        "checkpoint": {"every": 1_000_000},
        "output": {"folder": str(out)},
    }
    for name, value in spec.settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return validated(RunConfig, sections, "benchmark")


class Ours:
    """One trainer, ready to step."""

    def __init__(self, spec: Spec, shape: Shape, folder: Path) -> None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no"}.get(spec.precision, spec.precision)
        self._own = TemporaryDirectory()
        own = Path(self._own.name)
        index = open_index(spec.shards) if spec.shards else synthetic_index(own / "index", max(400, 4 * spec.batch))
        self.start = Path(spec.start) if spec.start else folder / "start"
        if not spec.start and not self.start.exists():
            start_folder(shape, index.schema, self.start)
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = Portioned(run_of(spec, self.start, own / "run"), make_accelerator(), index)
        self.trainer.quiet = True
        if not spec.shards:
            size, device = self.trainer.reader.preprocessing.size, self.trainer.accelerator.device
            pixels = torch.from_numpy(photos(size, BATCHES * spec.batch)).to(device)
            self.trainer.inputs = Resident(index, pixels, spec.batch)  # type: ignore[assignment]  # for a PixelReader
        for name in spec.without:
            REMOVED[name](self.trainer)
        if spec.locked:  # once a run, so not of a step
            self.trainer.reader.train().embed_prompts()

    def steps(self, count: int) -> None:
        self.trainer.go_on(count)

    def once(self) -> None:
        """One forward and backward pass."""
        trainer = self.trainer
        trainer.model.train()
        trainer.gradients.of(trainer.feed.portion(trainer.inputs, next(trainer.feed.planned(0, 1))))
        trainer.engine.forget()

    @property
    def facts(self) -> dict[str, Any]:
        prompts, tokens = self.trainer.reader.training_ids.shape
        return {"prompts": prompts, "tokens of a prompt": tokens}

    def furthest_gradient(self) -> dict[str, float]:
        """The largest relative difference of any parameter's gradient from the plain reference's, and of all."""
        trainer = self.trainer
        trainer.model.train()
        portion = trainer.feed.portion(trainer.inputs, next(trainer.feed.planned(0, 1)))
        trainer.gradients.of(portion)
        ours = {
            name.removeprefix("clip."): weight.grad.detach().float().cpu().clone()
            for name, weight in trainer.reader.named_parameters()
            if weight.grad is not None and name.startswith("clip.")
        }
        trainer.engine.forget()
        pixels = portion.batch.inputs.float().cpu() / 255
        theirs = reference_gradients(self.start, trainer.index.schema, pixels, portion.batch.labels)
        theirs = {name: gradient for name, gradient in theirs.items() if name in ours}
        total = torch.stack([each.norm() for each in theirs.values()]).norm()
        apart = torch.stack([(ours[name].view_as(each) - each).norm() for name, each in theirs.items()])
        # A weight that hardly matters may have a gradient of rounding alone: a bias of keys, before a softmax.
        whole = torch.stack([each.norm() for each in theirs.values()]).clamp(min=float(total) * 1e-5)
        return {"parameters": len(theirs), "all": float(apart.norm() / total), "furthest": float((apart / whole).max())}


def reference_gradients(start: Path, schema: Schema, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """By plain transformers: fp32, eager attention, every prompt padded to the end, cross-entropy by torch's own, the
    mean over all labels. `pixels` in 0..1."""
    from transformers import AutoTokenizer, CLIPModel

    from facetclip.model import CLIP_STATISTICS

    clip: Any = CLIPModel.from_pretrained(start, attn_implementation="eager").float().train()
    tokenizer: Any = AutoTokenizer.from_pretrained(start)
    prompts = [text for each in schema.attributes.values() for texts in each.training_prompts for text in texts]
    ids = tokenizer(prompts, padding="max_length", max_length=clip.config.text_config.max_position_embeddings)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in CLIP_STATISTICS)
    text = functional.normalize(clip.get_text_features(torch.tensor(ids["input_ids"])).pooler_output, dim=1)
    images = functional.normalize(clip.get_image_features((pixels - mean) / std).pooler_output, dim=1)
    logits = clip.logit_scale.exp() * images @ text.T
    total, first = torch.zeros(()), 0
    for place, attribute in enumerate(schema.attributes.values()):
        part = logits[:, first : first + len(attribute.values)]
        first += len(attribute.values)
        known = labels[:, place].clamp(min=-1)
        total = total + functional.cross_entropy(part, known, ignore_index=-1, reduction="sum")
    (total / (labels >= 0).sum()).backward()
    return {name: weight.grad for name, weight in clip.named_parameters() if weight.grad is not None}


def _whole_prompts(trainer: Trainer) -> None:
    reader = trainer.reader
    positions = reader.clip.config.text_config.max_position_embeddings
    pad = reader.tokenizer.pad_token_id
    reader.training_ids = functional.pad(reader.training_ids, (0, positions - reader.training_ids.shape[1]), value=pad)


def _kept_text(trainer: Trainer) -> None:
    reader = trainer.reader
    forward = reader.embed_prompts

    def anew() -> Tensor:
        reader._text = {}
        return forward()

    reader.embed_prompts = anew  # type: ignore[method-assign]


def _sdpa(trainer: Trainer) -> None:
    trainer.reader.clip.set_attn_implementation("eager")


def _class_token(trainer: Trainer) -> None:
    del trainer.reader.clip.vision_model.encoder.layers[-1].forward


def _silu(trainer: Trainer) -> None:
    from transformers.activations import QuickGELUActivation

    clip = trainer.reader.clip
    for layer in (*clip.text_model.encoder.layers, *clip.vision_model.encoder.layers):
        layer.mlp.activation_fn = QuickGELUActivation()


def _fused(trainer: Trainer) -> None:
    optimizer: Any = trainer.optimizer.optimizer
    step = optimizer.step
    for group in optimizer.param_groups:
        group["fused"] = None  # torch's own choice: for each operation all weights at once, on a GPU

    def without_asking(*_: Any) -> None:
        optimizer.found_inf = None  # by which the fused one leaves an update out
        step()

    optimizer.step = without_asking


def _kept_photos(trainer: Trainer) -> None:
    reader: Any = trainer.inputs
    reader._room = 0


# What can be taken out of the step -> how.
REMOVED: dict[str, Callable[[Trainer], None]] = {
    "prompts cut to the longest": _whole_prompts,
    "text features kept": _kept_text,
    "last layer for the class token alone": _class_token,
    "fused AdamW": _fused,
    "GELU as a SiLU": _silu,
    "SDPA": _sdpa,
    "photos kept": _kept_photos,
}
