"""The gradients of one step: forward and backward passes over a portion, in as many parts as the memory needs."""

import math

import torch
from torch import Tensor

from facetclip import faults
from facetclip.alarms import mean_cosine
from facetclip.augmentation import augment
from facetclip.collectives import gather_rows
from facetclip.config import RunConfig
from facetclip.engine import Engine
from facetclip.feed import Feed, Portion
from facetclip.losses import Pairing, attribute_losses, contrastive_loss
from facetclip.memory import Parts, room_for
from facetclip.model import Outputs

OPENNESS = 0.2  # about the cosine between a photo and an unrelated caption in a pre-trained CLIP


class Gradients:
    """Those of the loss of `run`, under an engine."""

    def __init__(self, run: RunConfig, engine: Engine, feed: Feed) -> None:
        self.run, self.engine, self.feed = run, engine, feed
        self.device = engine.accelerator.device
        micro = run.train.micro_batch
        self.parts = Parts(None if micro == "auto" else micro)

    def of(self, portion: Portion) -> tuple[Tensor, Tensor]:
        """Gradients of the loss over the global batch; this process's share of it, and how alike its photos look."""
        total, likeness = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        parts = self.parts.of(len(portion.batch.rows))
        for part in parts:
            loss, likeness = self._add(portion, part, last=part is parts[-1])
            total += loss
        return total, likeness

    def fit(self, portion: Portion, parts: int) -> int:
        """Cut portions so that they fit the memory of every process, into `parts` at least, found out on `portion`; the
        photos of a part.

        All processes call it. The gradients that it leaves behind are worth nothing.
        """
        self.parts.count = parts
        batch, world = self.run.train.batch, self.engine.accelerator.num_processes
        least, most = batch // world, -(-batch // world)
        room = room_for(self.engine.optimizer.optimizer, self.engine.trained.values())
        self.parts.fit(lambda part: self._add(portion, part, last=False), least, most, self.device)
        del room
        return -(-most // self.parts.count)

    def _add(self, portion: Portion, part: slice, *, last: bool) -> tuple[Tensor, Tensor]:
        """Add a part's gradients; its loss, and how alike its photos look. With the `last` one processes share them."""
        inputs, ids = self._inputs(portion, part)
        with self.engine.part(last=last):
            outputs: Outputs = self.engine.model(inputs, ids)
            loss = self._loss(outputs, portion.batch.labels[part].to(self.device, non_blocking=True), portion)
            if (value := faults.spoiled("train.loss")) is not None:
                loss = loss * value
            self.engine.backward(loss)
        features = outputs.images.detach()
        return loss.detach(), mean_cosine(features.sum(dim=0).square().sum(), len(features))

    def _inputs(self, portion: Portion, part: slice) -> tuple[Tensor, Tensor | None]:
        """What the model takes: photos, augmented, or features, and token ids of captions where there are any."""
        inputs = portion.batch.inputs[part].to(self.device, non_blocking=True)
        if inputs.ndim == 4:
            random, reader = portion.draws[part].to(self.device, non_blocking=True), self.feed.reader
            inputs = augment(inputs, random, self.run.augment, reader.mean, reader.std)
        ids = portion.caption_ids
        return inputs, None if ids is None else ids.to(self.device, non_blocking=True)

    def _loss(self, outputs: Outputs, labels: Tensor, portion: Portion) -> Tensor:
        weights = self.run.objective
        sums = attribute_losses(outputs.logits, labels, self.feed.objective_at(portion.step))
        loss = weights.attributes * sums.sum() / (portion.count or 1.0)  # 0: all that is labelled weighs nothing
        if outputs.captions is None or portion.groups is None:
            return loss
        mine = len(outputs.images) * self.engine.accelerator.process_index
        pairing = Pairing(
            images=gather_rows(outputs.images),
            captions=gather_rows(outputs.captions),
            groups=portion.groups.to(self.device, non_blocking=True),
            mine=slice(mine, mine + len(outputs.images)),
        )
        bias = -OPENNESS * outputs.scale.detach() - math.log(max(1, portion.captioned - 1))
        contrast = contrastive_loss(pairing, outputs.scale, bias, weights.form)
        return loss + weights.contrastive * contrast / max(1, portion.captioned)
