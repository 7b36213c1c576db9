"""What each process works on at each step: its share of the global batch, and what must be known of the whole.

Every process computes the plan, so every process knows the labels and captions of the whole global batch.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from facetclip.answering import answer_columns
from facetclip.augmentation import DRAWS, crops
from facetclip.batches import Batch, Inputs, in_background, uniforms
from facetclip.captions import captions_of
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.index import ShardIndex
from facetclip.losses import AttributeObjective
from facetclip.metrics import listed_values
from facetclip.mix import describe_mix, plan_mix
from facetclip.model import AttributeReader
from facetclip.sampling import SamplingSpec, labelled_subset, plan_epoch
from facetclip.schema import Attribute
from facetclip.store import CachedShards

MOST_DRAWS = 50_000  # that a loss is told from
LENGTHS = 16  # tokens: layers are compiled anew for every length, and torch gives up at the ninth


@dataclass(frozen=True)
class Portion:
    """One step's work for this process.

    `count`: what the labels of the global batch weigh. `caption_ids` [n, tokens] of this process's photos; `groups`
    [batch]: equal where captions are, -1 where there is none, in the order in which features are gathered; `captioned`:
    how many there are.
    """

    step: int
    batch: Batch
    draws: Tensor  # [n, DRAWS]
    count: float
    caption_ids: Tensor | None = None
    groups: Tensor | None = None
    captioned: int = 0

    def pinned(self) -> "Portion":
        """The same in memory that a GPU fetches from by itself, while the processor goes on; what lies on one stays."""
        tensors = {name: getattr(self, name) for name in ("draws", "caption_ids", "groups")}
        batch = replace(self.batch, inputs=_pinned(self.batch.inputs), labels=_pinned(self.batch.labels))
        return replace(self, batch=batch, **{name: _pinned(t) for name, t in tensors.items() if t is not None})


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


class Feed:
    """The portions of process `rank` of `world`; `run` has nothing left open.

    `chance`: the loss of an answer that sees no photo, only how often each value is drawn.
    """

    def __init__(self, run: RunConfig, index: ShardIndex, reader: AttributeReader, share: tuple[int, int]) -> None:
        self.run, self.index, self.reader = run, index, reader
        self.rank, self.world = share
        self.rows = training_rows(run, index)
        self.attributes = index.schema.attributes
        self._labels = {name: column[self.rows] for name, column in index.labels.items()}
        sampling = run.sampling
        self._spec = SamplingSpec(
            run.train.batch, sampling.strategy, sampling.over, sampling.max_repeats, sampling.window
        )
        self._plan: tuple[int, np.ndarray] = (-1, np.zeros((0, 0), dtype=np.int64))  # the last one, and of which epoch
        first = self._plan_of(0)
        self.steps_per_epoch = len(first)
        self.objective, self.chance = self._objective(first)
        self.mix = describe_mix(
            plan_mix(self._labels, first, self._spec),
            {name: attribute.values for name, attribute in self.attributes.items()},
            masks={name for name, attribute in self.attributes.items() if attribute.multi_valued},
        )

    def _plan_of(self, epoch: int) -> np.ndarray:
        """Places in `rows` of each global batch of `epoch`, [steps, batch]."""
        planned, plan = self._plan
        if planned != epoch:
            products = self.index.products[self.rows]
            shards = None if self._spec.window is None else self.index.shard[self.rows]
            plan = plan_epoch(self._labels, products, self._spec, seed=self.run.train.seed, epoch=epoch, shards=shards)
            self._plan = epoch, plan
        return plan

    def _objective(self, plan: np.ndarray) -> tuple[AttributeObjective, float]:
        objective, attributes, drawn = self.run.objective, self.attributes, plan.ravel()
        priors = [log_priors(attribute, self._labels[name][drawn]) for name, attribute in attributes.items()]
        tau = objective.logit_adjustment
        whole = AttributeObjective(
            multi_valued=tuple(attribute.multi_valued for attribute in attributes.values()),
            weights=tuple(objective.weights.get(name, 1.0) for name in attributes),
            smoothing=objective.label_smoothing,
            noise=objective.noise,
            shifts=tuple(tau * each for each in priors) if tau else None,
        )
        some = self.index.label_matrix(self.rows[drawn[:: -(-len(drawn) // MOST_DRAWS)]])
        return whole, whole.chance(priors, some)

    def objective_at(self, step: int) -> AttributeObjective:
        """What is minimised at a step: the noise comes in over the first half, since to a model that does not know a
        rare value yet each of its labels looks like a mistake."""
        whole = self.objective
        return (
            replace(whole, noise=whole.noise * min(1.0, 2 * step / (self.run.train.steps or 1)))
            if whole.noise
            else whole
        )

    def planned(self, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """(step, rows of the global batch) from step `first` up to `last`.

        An epoch is planned while the one before is trained on: of ten million photos that takes ten seconds.
        """
        coming, plan = partial(self._plan_of, first // self.steps_per_epoch), None
        for step in range(first, last):
            epoch, place = divmod(step, self.steps_per_epoch)
            if plan is None or place == 0:
                plan = coming()
                if (epoch + 1) * self.steps_per_epoch < last:
                    coming = in_background(partial(self._plan_of, epoch + 1))
            yield step, self.rows[plan[place]]

    def columns(self, rank: int, batch: int) -> np.ndarray:
        """The columns of a global batch that are a process's: neighbours, since their shards are (`windows`)."""
        return np.arange(rank * batch // self.world, (rank + 1) * batch // self.world)

    def rows_of(self, planned: tuple[int, np.ndarray]) -> np.ndarray:
        """What of a global batch this process reads."""
        return planned[1][self.columns(self.rank, len(planned[1]))]

    def portion(self, inputs: Inputs, planned: tuple[int, np.ndarray]) -> Portion:
        """This process's columns of a global batch, and what must be known of the whole."""
        step, rows = planned
        labels = self.index.label_matrix(rows)
        mine = self.columns(self.rank, len(rows))
        draws = uniforms(self.run.train.seed, step * np.int64(len(rows)) + mine, DRAWS)
        portion = Portion(
            step=step,
            batch=inputs.batch(rows[mine], crops(draws, self.run.augment)),
            draws=torch.from_numpy(draws),
            count=self.objective.count(labels),
        )
        return self._captioned(portion, rows, mine) if self.run.objective.contrastive else portion

    def _captioned(self, portion: Portion, rows: np.ndarray, mine: np.ndarray) -> Portion:
        captions = captions_of(self.index, rows, self.run.objective.captions, self.reader.schema)
        number = {text: place for place, text in enumerate(dict.fromkeys(captions))}
        groups = np.array([number[text] if text else -1 for text in captions])
        ids = self.reader.tokenise([captions[place] for place in mine], LENGTHS if self.run.train.compile else 1)
        captioned = int((groups >= 0).sum())
        return replace(portion, caption_ids=ids, groups=torch.from_numpy(groups), captioned=captioned)


def training_rows(run: RunConfig, index: ShardIndex) -> np.ndarray:
    """The rows of the training split that carry labels, `data.labelled` of them where that is given."""
    rows = index.rows("train")
    labels = {name: column[rows] for name, column in index.labels.items()}
    if run.data.labelled is not None:
        return rows[np.sort(labelled_subset(labels, index.products[rows], run.data.labelled, seed=run.train.seed))]
    return rows[np.any([column >= 0 for column in labels.values()], axis=0)]


def log_priors(attribute: Attribute, labels: np.ndarray) -> Tensor:
    """log of the share of each value among the labelled of `labels` [n], float [values]; half a label more for each.

    Multi-valued: the log odds of each value.
    """
    listed = listed_values(attribute, labels)
    items = listed.any(axis=1).sum()
    share = (listed.sum(axis=0) + 0.5) / (items + (1.0 if attribute.multi_valued else 0.5 * len(attribute.values)))
    return torch.from_numpy(np.log(share / (1 - share) if attribute.multi_valued else share)).float()


def _check_shares(batch: int, micro_batch: int | Literal["auto"] | None, world: int) -> None:
    """UserError where a process would have no photo, or fewer parts of a batch than others: it would meet them in
    another part of the model."""
    least, most = batch // world, -(-batch // world)
    if not least:
        raise UserError(f"train.batch = {batch}: {world} processes need one photo each at least")
    if isinstance(micro_batch, int) and -(-least // micro_batch) != -(-most // micro_batch):
        raise UserError(
            f"train.batch = {batch}: {world} processes get {least} or {most} photos each, which train.micro_batch = "
            f"{micro_batch} cuts into unequally many parts; take a batch that they share evenly"
        )


def _check_window(window: int | None, index: ShardIndex, world: int) -> None:
    """UserError where a machine's processes read more shards at a time than its cache may hold."""
    sizes = [shard.bytes for shard in index.shards]
    room = index.store.room if isinstance(index.store, CachedShards) else float("inf")
    if sum(sizes) <= room:
        return
    if room < max(sizes):
        least = max(sizes) + index.store.index.stat().st_size
        raise UserError(
            f"data.cache_bytes leaves room for 0 of {len(sizes)} shards: raise it (or FACETCLIP_CACHE_BYTES) to at "
            f"least {least:,}, the bytes of the index and the largest shard"
        )
    machines = max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    held = int(room * machines / max(sizes))
    if window is None or window > held:
        raise UserError(
            f"data.cache_bytes leaves room for {held} of {len(sizes)} shards ({sum(sizes):,} bytes), and a batch is "
            f"drawn from {window or 'all'} of them: set sampling.window to at most {max(1, held // 2)}, or raise it"
        )


def check_run(run: RunConfig, index: ShardIndex, world: int) -> None:
    """UserError for settings that do not fit together, or not this data."""
    known = set(index.schema.names)
    for key, names in (("objective.weights", run.objective.weights), ("sampling.over", run.sampling.over)):
        if strange := sorted(set(names) - known):
            raise UserError(f"{key}: no attribute {strange[0]!r}; the data has {', '.join(index.schema.names)}")
    if run.objective.attributes and not any(run.objective.weights.get(name, 1.0) for name in known):
        raise UserError("objective.weights: every attribute counts 0; nothing would be learned")
    _check_shares(run.train.batch, run.train.micro_batch, world)
    _check_window(run.sampling.window, index, world)
    if run.tracking.register_as:
        answer_columns(index.schema.names)
    if run.objective.contrastive:
        _check_captions(run, index, world)


def _check_captions(run: RunConfig, index: ShardIndex, world: int) -> None:
    if run.tuning.mode in ("probe", "prompt"):
        raise UserError(f"tuning.mode {run.tuning.mode!r} trains no tower; it cannot have objective.contrastive")
    if run.objective.captions == "titles" and not any(index.titles.take(training_rows(run, index)).to_pylist()):
        raise UserError("objective.captions = 'titles': no labelled photo of the training split has a title")
    if run.train.micro_batch:
        raise UserError("objective.contrastive compares the whole batch; it cannot have train.micro_batch")
    if run.train.batch % world:
        raise UserError(f"objective.contrastive needs a train.batch that {world} processes share evenly")
