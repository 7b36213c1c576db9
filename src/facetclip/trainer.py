"""Training: the run file and the shards in, the best model on the validation split out.

The same command goes on where it was stopped. Every process computes the plan, so every process knows the labels of the
whole global batch: the loss is divided by the global count of labels without a word between them.
"""

import math
import sys
import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from facetclip import faults
from facetclip.agreement import Agreement, Verdict
from facetclip.alarms import CollapseAlarm
from facetclip.averaging import MovingAverage
from facetclip.batches import Inputs, PixelReader, ahead
from facetclip.checkpoint import (
    Checkpoint,
    SaveClock,
    TrainState,
    check_science,
    check_state,
    load_checkpoint,
    save_checkpoint,
    scientific,
)
from facetclip.collectives import gather_objects, gather_whole
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.features import feature_reader
from facetclip.feed import Feed, Portion, check_run, training_rows
from facetclip.files import remove, replace_folder
from facetclip.goodput import Goodput
from facetclip.gradients import Gradients
from facetclip.index import ShardIndex, open_index
from facetclip.interruption import MARKER, Interrupted, Interruption, listening
from facetclip.launch import check_engine, make_engine, precision_of
from facetclip.model import save_model
from facetclip.optimizers import build_optimizer
from facetclip.presets import completed
from facetclip.progress import Progress, watched
from facetclip.schedule import due, learning_rate
from facetclip.scores import reader_digest
from facetclip.start import start_model
from facetclip.step_log import StepLog
from facetclip.store import cache_spec
from facetclip.towers import shape_computation
from facetclip.tracking import Tracker
from facetclip.tuning import FROZEN_IMAGES, plain_weights, rate_factors, tune
from facetclip.validation import judge, read_logits


@dataclass(frozen=True)
class TrainResult:
    """The folder of the best weights as they were trained, and the validation loss and step they have."""

    best: Path
    loss: float
    step: int


class Trainer:
    """One run on one process of many. `index`: in place of that of `data.shards`; `forget`: what goes of the run folder
    once nothing is left to be refused; `tracker` and `quiet` may be set before training."""

    tracker: Tracker | None = None
    quiet = False  # on the terminal

    def __init__(
        self,
        run: RunConfig,
        accelerator: Accelerator,
        index: ShardIndex | None = None,
        *,
        forget: Collection[str] = (),
    ) -> None:
        self.accelerator = accelerator
        self.folder = Path(run.output.folder)
        self.interruption = Interruption()
        self.index = index or open_index(run.data.shards, cache_spec(run.data.cache, run.data.cache_bytes))
        check_run(run, self.index, accelerator.num_processes)
        check_engine(accelerator, run)
        torch.manual_seed(run.train.seed)
        self.reader = start_model(run, self.index)  # without the engine's wrapping
        rows, width = training_rows(run, self.index), self.reader.clip.config.vision_config.hidden_size
        self.run = completed(run, labelled=len(rows), width=width, precision=precision_of(accelerator))
        self.start_digest = reader_digest(self.reader)
        self.inputs = self._inputs()
        tune(self.reader, self.run.tuning)
        shape_computation(self.reader.clip, self.run.train)
        self.feed = Feed(self.run, self.index, self.reader, (accelerator.process_index, accelerator.num_processes))
        self.feed.objective = self.feed.objective.on(accelerator.device)
        self.steps = 0 if run.tuning.mode == "zero_shot" else self.run.train.steps or 0
        self.model: Any = self.reader.to(accelerator.device)
        self.optimizer: Any = None
        if self.steps:
            factors = rate_factors(self.reader, run.tuning.layer_decay)
            optimizer = build_optimizer(self.reader, self.run.optimizer, factors)
            self.engine = make_engine(accelerator, self.reader, optimizer, self.run)
            self.model, self.optimizer = self.engine.model, self.engine.optimizer
            self.gradients = Gradients(self.run, self.engine, self.feed)
        self.average = MovingAverage(self.reader, run.train.average)
        self.state = TrainState()
        self.agreement = Agreement(accelerator.device, most=self._most_skipped)
        self.clock = SaveClock(self.run.checkpoint, self.steps, free=run.checkpoint.every is None)
        chance = self.feed.chance if run.objective.contrastive == 0 else math.inf
        self._alarm = CollapseAlarm(self.run.optimizer.warmup_steps or 0, chance)
        self._forget(forget)
        self.progress = Progress(self.folder, accelerator.process_index, accelerator.num_processes)
        self.goodput = Goodput(self.folder, self.progress.last.time)

    def _forget(self, names: Collection[str]) -> None:
        """Delete what earlier launches made, when all processes have come so far."""
        if names:
            self.accelerator.wait_for_everyone()
            for name in names if self.accelerator.is_main_process else ():
                remove(self.folder / name)
            self.accelerator.wait_for_everyone()

    def _inputs(self) -> Inputs:
        """Photos, or where nothing changes them on their way through the image tower their features."""
        train, validation = training_rows(self.run, self.index), self.index.rows("validation")
        size, fit = self.reader.preprocessing.size, self.reader.preprocessing.fit
        both = np.union1d(train, validation)
        pixels = PixelReader(self.index, size, fit, often=len(both), threads=self.run.loading.threads)
        if not (self.run.tuning.cache and self.run.tuning.mode in FROZEN_IMAGES):
            return pixels
        every = np.union1d(self.index.rows("train"), validation)  # so that runs on fewer labels share them
        folder = Path(self.run.data.features or self.folder / "features")
        return feature_reader(self.reader, pixels, every, folder, self.accelerator)

    def train_step(self, portion: Portion) -> tuple[Tensor, Tensor]:
        """One update; this process's share of the loss, and how alike its photos look. Nothing here waits for the
        device (but for ZeRO's updates, and those of fp16)."""
        if not self.reader.training:
            self.model.train()
        rate = learning_rate(
            portion.step,
            peak=self.run.optimizer.lr or 0.0,
            final=self.run.optimizer.final_lr,
            warmup=self.run.optimizer.warmup_steps or 0,
            steps=self.steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss, likeness = self.gradients.of(portion)
        if (value := faults.spoiled("train.gradient")) is not None:
            self.engine.gradients[0].fill_(value)
        norm = self.engine.clip(self.run.optimizer.clip_norm)
        wishes = {"stop": self.interruption.wanted, "save": self.clock.overdue(self.state.step + 1)}
        left_out = self.agreement.on(portion.step, loss, norm, **wishes)
        self.engine.update(left_out)
        self.average.update(portion.step + 1, left_out)
        return loss, likeness

    def _read(self) -> tuple[bool, bool]:
        """What all processes agreed on since the last reading: (whether to stop, whether to save). Before anything of
        the weights is kept, this says whether they may be."""
        verdicts = self.agreement.read()
        for verdict in verdicts:
            if verdict.losses or verdict.gradients:
                self._count_left_out(verdict)
        return any(each.stop for each in verdicts), any(each.save for each in verdicts)

    def _count_left_out(self, verdict: Verdict) -> None:
        """One more update changed nothing. UserError, on every process, where the run stops at it; nor did any after it
        then."""
        step = verdict.step
        what, where = ("loss", verdict.losses) if verdict.losses else ("gradient", verdict.gradients)
        self.state.skipped += 1
        text = f"step {step + 1}: the {what} is no number in process {', '.join(map(str, where))}"
        if self.state.skipped <= self._most_skipped:
            self.say(f"{text}; this update is left out, the {self.state.skipped}. of {self._most_skipped}")
            return
        _, rows = next(self.feed.planned(step, step + 1))
        items = self.index.item_ids.take(rows[self.feed.columns(where[0], len(rows))[:3]]).to_pylist()
        raise UserError(
            f"{text} (photos {', '.join(items)} ...): lower optimizer.lr, train in fp32, or leave such updates out by "
            "train.nonfinite = 'skip'; the last checkpoint is from before"
        )

    def train(self) -> TrainResult:
        """All steps from the present one; the best weights on the validation split end in `output.folder/best`.

        Interrupted, on every process, when any was asked to end: everything is saved.
        """
        if self.state.step == 0:
            self._describe()
        if not self.steps:
            self.validate()
        self._beat()
        with listening(self.folder / MARKER) as self.interruption, watched(self.progress, self.run.watch.timeout):
            self._settle()
            self._loop()
            if any(gather_objects(self.interruption.wanted)):  # since the last reading, after which all was saved
                raise Interrupted(self.state.step if self.steps else None)
        return TrainResult(self.folder / "best", self.state.best, self.state.best_step)

    def _settle(self) -> None:
        """Backward passes that nothing comes of: to find out how many photos fit the memory, and where the first one
        rounds otherwise than all others, so that a run that goes on is to the last bit one that was never stopped."""
        if self.state.step >= self.steps or not (self.engine.rearranges or self.run.train.micro_batch == "auto"):
            return
        self.model.train()
        portion = self.feed.portion(self.inputs, next(self.feed.planned(self.state.step, self.state.step + 1)))
        if self.run.train.micro_batch == "auto":
            self._cut(portion)
        if self.engine.rearranges:
            self.gradients.of(portion)
        self.engine.forget()

    def _cut(self, portion: Portion) -> None:
        """Find out how many photos fit the memory. A run that goes on has as many parts as it had, which round as they
        did, unless they do not fit any more, or their processes are others."""
        state, processes = self.state, self.accelerator.num_processes
        photos = self.gradients.fit(portion, state.parts if state.processes == processes else 1)
        state.parts, state.processes = self.gradients.parts.count, processes
        self.say(f"train.micro_batch: {photos} photos at a time")

    def _loop(self) -> None:
        run, last, log = self.run, self.steps, StepLog()
        self.goodput.begin()
        planned = self.inputs.coming(self.feed.planned(self.state.step, last), self.feed.rows_of)
        portions = ahead(self._portion, planned, self.run.loading.ahead)
        saved_every = last if self.clock.free else run.checkpoint.every or last
        intervals = (run.train.log_every, run.validation.every or last, saved_every)
        while not self.patience_is_over:
            self._beat()
            with self.goodput.spend("stall"):
                portion = next(portions, None)
            if portion is None:
                return
            faults.reach("train.step")
            log.add(*self.train_step(portion))
            self.state.step = portion.step + 1
            logs, validates, saves = (due(self.state.step, every, last=last) for every in intervals)
            if not (logs or validates or saves or self.agreement.overdue):
                continue
            stop, save = self._read()
            if logs:
                self.report(*log.take(self.accelerator, run.train.batch))
            if validates:
                self.validate()
                log.restart()
            if saves or save or stop or self.patience_is_over:
                self.save()
                log.restart()
            if stop:
                raise Interrupted(self.state.step)

    def _portion(self, planned: tuple[int, np.ndarray]) -> Portion:
        """This process's work at a step, where a GPU can fetch it itself."""
        portion = self.feed.portion(self.inputs, planned)
        return portion.pinned() if self.accelerator.device.type == "cuda" else portion

    @property
    def _most_skipped(self) -> int:
        return self.run.train.most_skipped if self.run.train.nonfinite == "skip" else 0

    @property
    def died_at(self) -> int | None:
        """The step at which the start before this one died; None where it ended well, or there was none."""
        return self.progress.last.step if self.goodput.died else None

    @property
    def patience_is_over(self) -> bool:
        """Whether the validation split has seen nothing better for `train.patience` validations."""
        waited = self.state.step - self.state.best_step
        return 0 < self.run.train.patience * (self.run.validation.every or 1) <= waited

    def _describe(self) -> None:
        run = self.run
        self.say(
            f"{run.tuning.mode}: {self.steps} steps of {run.train.batch} photos out of {len(self.feed.rows)} labelled, "
            f"learning rate {run.optimizer.lr:.3g}"
        )
        if self.steps < (run.optimizer.warmup_steps or 0):
            self.say(f"  which it does not reach: optimizer.warmup_steps = {run.optimizer.warmup_steps}")
        if not (self.index.label_matrix(self.index.rows("validation")) >= 0).any():
            self.say("no label in the validation split: the last weights are kept, neither blended nor calibrated")
        if self.steps:
            for line in self.feed.mix:
                self.say(line)

    def report(self, values: dict[str, float], likeness: float) -> None:
        """One line, and one point in MLflow."""
        values["train/learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)
        self._say(values)
        frozen = self.run.tuning.mode in FROZEN_IMAGES
        alarm = self._alarm.at(self.state.step, values["train/loss"], 0.0 if frozen else likeness)
        if alarm and self.accelerator.is_main_process:
            print(f"step {self.state.step}: warning: {alarm}", file=sys.stderr, flush=True)

    def _say(self, values: dict[str, float]) -> None:
        if self.tracker:
            self.tracker.metrics(self.state.step, values)
        text = "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items())
        self.say(f"step {self.state.step}/{self.steps}  {text}")

    def _beat(self) -> None:
        self.progress.beat(self.state.step)

    def validate(self) -> None:
        """Judge the validation split on all processes; the weights of the lowest loss are exported as the best."""
        rows = self.index.rows("validation")
        with self.goodput.spend("validation"), self.average.applied():
            with self.accelerator.autocast():
                logits = read_logits(self.reader, self.inputs, rows, self._beat)
            if not np.isfinite(logits).all():
                raise UserError(f"step {self.state.step}: the model's answers are no numbers; lower optimizer.lr")
            judgement = judge(logits, self.index.label_matrix(rows), self.index.schema)
            if judgement.values:
                self._say(judgement.values)
            # Without a validation label the newest weights count as the best. What follows is done by all processes or
            # none, and their numbers may differ in the last bit: that of the first counts.
            loss, *_ = gather_objects(-float(self.state.step) if judgement.loss is None else judgement.loss)
            if loss < self.state.best:
                self.state.best, self.state.best_step = loss, self.state.step
                self.export()

    def export(self) -> None:
        """Write the present weights as a model folder, as they were trained: not calibrated, not blended."""
        main = self.accelerator.is_main_process
        with self.engine.gathered() if self.steps else nullcontext():
            weights = gather_whole(plain_weights(self.reader), keep=main)
            if main:
                measured = {"validation_loss": self.state.best} if self.state.best > 0 else {}
                card = replace(
                    self.reader.card,
                    start=self.run.model.start,
                    data_digest=self.index.digest,
                    metrics=measured | {"step": self.state.best_step},
                    calibration={},
                )
                with replace_folder(self.folder / "best") as beside:
                    save_model(self.reader, beside, card=card, weights=weights)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """A checkpoint of the present step: what is trained, and how far it is."""
        self._beat()
        began = time.monotonic()
        with self.goodput.spend("checkpoint"):
            main = self.accelerator.is_main_process
            checkpoint = Checkpoint(
                state=self.state,
                weights=self.engine.weights(keep=main),
                optimizer=self.engine.optimizer_state(keep=main),
                science=self.science,
                scaler=self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
                average=gather_whole(self.average.average, keep=main),
            )
            if main:
                save_checkpoint(self.folder / "checkpoints", checkpoint, keep=self.run.checkpoint.keep)
            self.accelerator.wait_for_everyone()
        self.clock.saved(began)
        if self.accelerator.is_main_process:
            self.goodput.store()

    def resume(self, allow: Collection[str] = ()) -> None:
        """Go on from the newest whole checkpoint of the run folder, if there is one; what `allow` names may have
        changed meanwhile. UserError where processes do not find the same one."""
        checkpoint = load_checkpoint(self.folder / "checkpoints", warn=self.say)
        steps = gather_objects(str(checkpoint.state.step) if checkpoint else "none")
        if len(set(steps)) > 1:
            seen = f"processes see different checkpoints (steps {', '.join(steps)})"
            raise UserError(f"{self.folder}: {seen}; all need the same run folder")
        if checkpoint is None:
            return
        check_science(checkpoint.science, self.science, self.folder, allow)
        trained = {name: weight for name, weight in self.reader.named_parameters() if weight.requires_grad}
        # Of a weight that ZeRO holds a piece of, `ds_shape` is that of the whole.
        shapes = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in trained.items()}
        check_state(checkpoint, self.science, shapes, self.folder)
        self.engine.load(checkpoint.weights, checkpoint.optimizer)
        self.average.load(checkpoint.average)
        if self.accelerator.scaler and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.state = checkpoint.state
        self.agreement.resume(self.state.skipped)
        self.say(f"resumed from step {self.state.step} of {self.folder}")

    @property
    def science(self) -> dict[str, Any]:
        """Every setting that the numbers depend on, flat, with the digests of the start and of the data."""
        return scientific(self.run) | {"model.digest": self.start_digest, "data.digest": self.index.digest}

    def say(self, line: str) -> None:
        """One line on the terminal, from one process."""
        if self.accelerator.is_main_process and not self.quiet:
            print(line, flush=True)
