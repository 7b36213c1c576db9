"""Training: the run file and the shards in, the best model on the validation split out.

The same command goes on where it was stopped. Every process computes the plan, so every process knows the labels of the
whole global batch: the loss is divided by the global count of labels without a word between them.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from facetclip.batches import Batch, PixelReader, ahead, augment, uniforms
from facetclip.checkpoint import (
    Checkpoint,
    TrainState,
    check_science,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.files import replace_folder
from facetclip.index import ShardIndex, open_index
from facetclip.losses import attribute_losses
from facetclip.model import AttributeReader, load_model, new_model, save_model
from facetclip.optimizers import build_optimizer
from facetclip.sampling import SamplingSpec, plan_epoch
from facetclip.schedule import due, learning_rate
from facetclip.tracking import Tracker
from facetclip.validation import measure

DRAWS = 5  # random numbers that augment one photo
ENGINES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # whole weights on every process


@dataclass(frozen=True)
class TrainResult:
    """The folder of the best model, and the validation loss and step it has."""

    model: Path
    best: float
    best_step: int


class Trainer:
    """One run on one process of many."""

    def __init__(self, run: RunConfig, accelerator: Accelerator, tracker: Tracker | None = None) -> None:
        self.run, self.accelerator, self.tracker = run, accelerator, tracker
        self.folder = Path(run.output.folder)
        self.index = open_index(Path(run.data.shards))
        self.rows = self.index.rows("train")
        torch.manual_seed(run.train.seed)
        reader = _start(run, self.index)
        if run.train.freeze_text:
            reader.lock_text()
        self.multi_valued = [attribute.multi_valued for attribute in reader.schema.attributes.values()]
        size, fit = reader.preprocessing.size, reader.preprocessing.fit
        self.pixels = PixelReader(self.index, size, fit, cached=self.rows)
        optimizer = build_optimizer(reader, run.optimizer)
        self.reader = reader  # the model without the engine's wrapping
        self.model, self.optimizer = self.accelerator.prepare(reader, optimizer)
        self.state = TrainState()
        self.steps_per_epoch = len(self._plan_of(0))

    def _plan_of(self, epoch: int) -> np.ndarray:
        """Rows of the index for each global batch of `epoch`, [steps, batch]."""
        spec = SamplingSpec(
            batch=self.run.train.batch,
            balanced=self.run.sampling.strategy == "balanced",
            max_repeats=self.run.sampling.max_repeats,
        )
        labels = {name: column[self.rows] for name, column in self.index.labels.items()}
        return self.rows[plan_epoch(labels, spec, seed=self.run.train.seed, epoch=epoch)]

    def _portions(self) -> Iterator[tuple[int, np.ndarray]]:
        """(step, rows of the global batch) from the present step to the last."""
        epoch_planned, plan = -1, np.zeros((0, 0), dtype=np.int64)
        for step in range(self.state.step, self.run.train.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != epoch_planned:
                plan, epoch_planned = self._plan_of(epoch), epoch
            yield step, plan[place]

    def _prepare(self, portion: tuple[int, np.ndarray]) -> tuple[int, Batch, np.ndarray, int]:
        """This process's columns of a global batch, their random draws, and the global count of labels."""
        step, rows = portion
        count = int((self.index.label_matrix(rows) >= 0).sum())
        mine = np.arange(self.accelerator.process_index, len(rows), self.accelerator.num_processes)
        places = step * np.int64(len(rows)) + mine
        return step, self.pixels.batch(rows[mine]), uniforms(self.run.train.seed, places, DRAWS), count

    def forward_backward(self, batch: Batch, draws: np.ndarray, count: int) -> Tensor:
        """Gradients of the mean loss over all labels of the global batch; returns this process's share of that loss."""
        total = torch.zeros((), device=self.accelerator.device)
        size = self.run.train.micro_batch or len(batch.rows)
        starts = range(0, len(batch.rows), size)
        for start in starts:
            part = slice(start, start + size)
            pixels = batch.pixels[part].to(self.accelerator.device, non_blocking=True)
            random = torch.from_numpy(draws[part]).to(self.accelerator.device)
            labels = batch.labels[part].to(self.accelerator.device)
            last = start == starts[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.model), self.accelerator.autocast():
                logits = self.model(augment(pixels, random, self.run.augment))
                sums = attribute_losses(logits, labels, self.multi_valued, smoothing=self.run.train.label_smoothing)
                loss = sums.sum() / count
                # Data parallelism averages gradients over processes; the loss is a sum over them.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        return total

    def train_step(self, step: int, batch: Batch, draws: np.ndarray, count: int) -> Tensor:
        """One update."""
        self.model.train()
        rate = learning_rate(
            step,
            peak=self.run.optimizer.lr,
            final=self.run.optimizer.final_lr,
            warmup=self.run.optimizer.warmup_steps,
            steps=self.run.train.steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.forward_backward(batch, draws, count)
        if self.run.optimizer.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.run.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def train(self) -> TrainResult:
        """All steps from the present one; the best model on the validation split ends in `output.folder/model`."""
        run, last = self.run, self.run.train.steps
        log = StepLog()
        for step, batch, draws, count in ahead(self._prepare, self._portions()):
            log.add(self.train_step(step, batch, draws, count))
            self.state.step = step + 1
            if due(self.state.step, run.train.log_every, last=last):
                self.report(log.take(self.accelerator, run.train.batch))
            if due(self.state.step, run.validation.every, last=last):
                self.validate()
                log.restart()
            if due(self.state.step, run.checkpoint.every, last=last):
                self.save()
                log.restart()
        return TrainResult(self.folder / "model", self.state.best, self.state.best_step)

    def report(self, values: dict[str, float]) -> None:
        """One line, and one point in MLflow; UserError, on every process, where the loss is no longer a number."""
        if not math.isfinite(values["train/loss"]):
            raise UserError(
                f"the loss is {values['train/loss']} at step {self.state.step}: lower optimizer.lr, or train in fp32; "
                "the last checkpoint is from before"
            )
        values["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self._say(values)

    def _say(self, values: dict[str, float]) -> None:
        if self.tracker:
            self.tracker.metrics(self.state.step, values)
        if self.accelerator.is_main_process:
            text = "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items())
            self.say(f"step {self.state.step}/{self.run.train.steps}  {text}")

    def validate(self) -> None:
        """Measure the validation split on all processes; the model of the lowest loss is exported as the best."""
        values = measure(self.reader, self.pixels, self.index.rows("validation"), self.accelerator)
        self._say(values)
        # Without a validation label the newest model counts as the best.
        loss = values.get("validation/loss", -self.state.step)
        if loss < self.state.best:
            self.state.best, self.state.best_step = loss, self.state.step
            self.export()

    def export(self) -> None:
        """Write the present weights as the model folder."""
        if self.accelerator.is_main_process:
            card = replace(
                self.reader.card,
                start=self.run.model.start,
                data_digest=self.index.digest,
                metrics={"validation_loss": self.state.best, "step": self.state.best_step},
            )
            with replace_folder(self.folder / "model") as beside:
                save_model(self.reader, beside, card=card)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """A checkpoint of the present step."""
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(
                state=self.state,
                weights={name: value.contiguous() for name, value in self.reader.state_dict().items()},
                optimizer=optimizer_tensors(self.optimizer.optimizer),
                science=self.science,
                scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            )
            save_checkpoint(self.folder / "checkpoints", checkpoint, keep=self.run.checkpoint.keep)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run folder, if there is one."""
        checkpoint = load_checkpoint(self.folder / "checkpoints", warn=self.say)
        if checkpoint is None:
            return
        check_science(checkpoint.science, self.science, self.folder)
        self.reader.load_state_dict(checkpoint.weights)
        restore_optimizer(self.optimizer.optimizer, checkpoint.optimizer)
        if self.accelerator.scaler and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.state = checkpoint.state
        self.say(f"resumed from step {self.state.step} of {self.folder}")

    @property
    def science(self) -> dict[str, Any]:
        """Every setting that the numbers depend on, flat, with the digest of the data."""
        sections = self.run.model_dump(include={"model", "train", "optimizer", "sampling", "augment", "validation"})
        flat = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
        del flat["train.log_every"]
        return flat | {"data.digest": self.index.digest}

    def say(self, line: str) -> None:
        """One line on the terminal, from one process."""
        if self.accelerator.is_main_process:
            print(line, flush=True)


class StepLog:
    """Losses and time since the last line; losses stay on the device until they are read."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.restart()

    def restart(self) -> None:
        """Start the clock anew: what came before is not training."""
        self.started, self.timed = time.perf_counter(), 0

    def add(self, loss: Tensor) -> None:
        """This process's share of one step's loss."""
        self.losses.append(loss)
        self.timed += 1

    def take(self, accelerator: Accelerator, batch: int) -> dict[str, float]:
        """The mean loss and the images per second since the last line, the same on every process."""
        shares: Any = accelerator.reduce(torch.stack(self.losses), reduction="sum")
        seconds = time.perf_counter() - self.started
        values = {
            "train/loss": float(shares.mean()),
            "train/images_per_second": batch * self.timed / max(seconds, 1e-9),
        }
        self.losses = []
        self.restart()
        return values


def make_accelerator() -> Accelerator:
    """The engine that the launcher set up; UserError where it is not the one that was asked for."""
    try:
        # Told only by the device that is there: of several processes on the processor each would believe to be alone.
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
    except ValueError as error:
        raise UserError(f"the launcher's settings cannot be used on this machine: {error}") from error
    if accelerator.distributed_type not in ENGINES:
        raise UserError(f"the engine {accelerator.distributed_type.value} is not one of accelerate_configs/")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"{asked} processes were launched, but each believes to be one of {accelerator.num_processes}; "
            "use a file of accelerate_configs/"
        )
    return accelerator


def _start(run: RunConfig, index: ShardIndex) -> AttributeReader:
    if run.model.new:
        captions = [text for attribute in index.schema.attributes.values() for text in attribute.prompt_texts]
        return new_model(run.model.new, index.schema, captions, seed=run.train.seed)
    return load_model(str(run.model.start), index.schema, fit=run.model.fit)
