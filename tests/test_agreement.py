"""Steps that nobody waits for: what is decided on the device, and when it is read."""

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_shop import make_shards
from test_trainer import make_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import facetclip.augmentation as augmentation_module
from facetclip import agreement as agreement_module
from facetclip import faults
from facetclip.agreement import Agreement
from facetclip.checkpoint import Checkpoint, load_checkpoint
from facetclip.config import RunConfig
from facetclip.engine import Engine
from facetclip.errors import UserError
from facetclip.launch import make_accelerator
from facetclip.trainer import Trainer

STEPS = 12
ASKING = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")
SIZED_BY_VALUES = ("nonzero", "masked_select", "_local_scalar_dense", "_unique2", "unique_dim", "bincount", "equal")
ADAMW: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}}
MUON: dict[str, Any] = {"optimizer": {"name": "muon", "lr": 1e-3, "weight_decay": 0.1}}
LOSSES: dict[str, Any] = {"objective": {"noise": 0.1, "logit_adjustment": 1.0, "label_smoothing": 0.1}}
CAPTIONS: dict[str, Any] = {"objective": {"contrastive": 0.7, "form": "sigmoid"}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    make_shards(folder / "shards", 60)
    return folder


def run_of(shop: Path, name: str, **changes: dict[str, Any]) -> RunConfig:
    sections: dict[str, dict[str, Any]] = {
        "train": {"steps": STEPS, "log_every": 5},
        "validation": {"every": 100},
        "checkpoint": {"every": 100},
        "output": {"folder": str(shop / name)},
    }
    return make_run(shop, sections, **changes)


class Waits(TorchDispatchMode):
    """Whatever a processor would wait for its device for, as (step, whether within it), by this thread alone."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.trainer, self.thread = trainer, threading.get_ident()
        self.found: list[tuple[int, str, str]] = []
        self.where, self.step = "between", trainer.train_step
        monkeypatch.setattr(trainer, "train_step", self.watched_step)
        for name in ASKING:
            monkeypatch.setattr(Tensor, name, self.noted(name, getattr(Tensor, name)))

    def watched_step(self, portion: Any) -> Any:
        self.where = "within"
        measured = self.step(portion)
        self.where = "between"
        return measured

    def note(self, name: str) -> None:
        if threading.get_ident() == self.thread:
            self.found.append((self.trainer.state.step + (self.where == "within"), self.where, name))

    def noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def asked(tensor: Tensor, *args: Any, **named: Any) -> Any:
            self.note(name)
            return method(tensor, *args, **named)

        return asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        masks = name in ("index", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in SIZED_BY_VALUES or masks:
            self.note(name)
        return func(*args, **(kwargs or {}))


def waits(run: RunConfig, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Trainer], None] | None = None) -> Waits:
    # On a processor photos are augmented one by one, by plain numbers.
    together = augmentation_module.together
    monkeypatch.setattr(
        augmentation_module, "one_by_one", lambda pixels, turned, _, shown: together(pixels, turned, shown)
    )
    monkeypatch.setattr(agreement_module, "WITHIN", 1e9)  # however busy this machine is
    trainer = Trainer(run, make_accelerator())
    trainer.quiet = True
    if spoil:
        spoil(trainer)
    found = Waits(trainer, monkeypatch)
    with found:
        trainer.train()
    monkeypatch.undo()
    return found


@pytest.mark.parametrize(
    "changes",
    [
        ADAMW | {"train": {"average": 0.5}} | LOSSES,
        MUON | {"tuning": {"mode": "last_blocks", "blocks": 1}},
        {"tuning": {"mode": "lora"}, "train": {"micro_batch": 3}},
        {"tuning": {"mode": "probe"}, "train": {"nonfinite": "skip"}},
        ADAMW | CAPTIONS | {"tuning": {"mode": "image_tower"}},
    ],
    ids=["adamw", "muon", "lora", "probe", "captions"],
)
def test_between_two_lines_of_the_log_no_step_waits_for_the_device(
    shop: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    found = waits(run_of(shop, request.node.name, **changes), monkeypatch).found
    assert [each for each in found if each[1] == "within"] == []
    assert {step for step, _, _ in found} == {1, 2, 5, 10, 12}  # the first two tell how long a step takes


@pytest.mark.parametrize("ask", [float, bool, lambda loss: loss.tolist(), lambda loss: loss[loss > 0], torch.nonzero])
def test_a_step_that_waits_is_seen(shop: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Tensor], Any]) -> None:
    def spoil(trainer: Trainer) -> None:
        of = trainer.gradients.of

        def waiting(portion: Any) -> Any:
            measured = of(portion)
            ask(measured[0][None])
            return measured

        trainer.gradients.of = waiting  # type: ignore[method-assign]

    found = waits(run_of(shop, "waiting", train={"steps": 3}), monkeypatch, spoil).found
    assert {step for step, where, _ in found if where == "within"} == {1, 2, 3}


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU says itself when it is waited for")
@pytest.mark.parametrize("changes", [ADAMW | LOSSES, MUON, ADAMW | CAPTIONS], ids=["adamw", "muon", "captions"])
def test_no_step_waits_for_a_gpu(shop: Path, changes: dict[str, Any], request: pytest.FixtureRequest) -> None:
    trainer = Trainer(run_of(shop, request.node.name, **changes), make_accelerator())
    step = trainer.train_step

    def strict(portion: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(portion)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.train_step = strict  # type: ignore[method-assign]
    trainer.train()


def trained(run: RunConfig, monkeypatch: pytest.MonkeyPatch, fault: str = "") -> Trainer:
    monkeypatch.setenv("FACETCLIP_FAULT", fault)
    faults._reached.clear()
    trainer = Trainer(run, make_accelerator())
    trainer.train()
    return trainer


def end_of(run: RunConfig) -> Checkpoint:
    found = load_checkpoint(Path(run.output.folder) / "checkpoints", warn=pytest.fail)
    assert found is not None
    return found


def differing(one: Checkpoint, other: Checkpoint) -> list[str]:
    pairs = ((one.weights, other.weights), (one.optimizer, other.optimizer), (one.average, other.average))
    assert all(left.keys() == right.keys() for left, right in pairs)
    return [name for left, right in pairs for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_what_is_left_out_on_the_device_leaves_no_trace(shop: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Beside a run that looks at each step's numbers first, and does not come to the optimizer at bad ones."""
    fault = "train.loss:1=nan,train.gradient:6=inf"
    late, at_once = (
        run_of(
            shop,
            f"{name} {how}",
            train={"nonfinite": "skip", "average": 0.5, "log_every": 100},
            optimizer={"name": name, "lr": 1e-3, "weight_decay": 0.1},
        )
        for how in ("late", "at once")
    )
    trained(late, monkeypatch, fault)
    update = Engine.update

    def looking(engine: Engine, left_out: Tensor) -> None:
        if left_out.item():
            engine.forget()
        else:
            update(engine, torch.zeros_like(left_out))

    monkeypatch.setattr(Engine, "update", looking)
    trained(at_once, monkeypatch, fault)
    assert end_of(late).state == end_of(at_once).state
    assert end_of(late).state.skipped == 2
    assert differing(end_of(late), end_of(at_once)) == []


@pytest.mark.parametrize(
    ("train", "fault", "bad"),
    [
        ({}, "train.loss:4=nan", 4),
        ({}, "train.gradient:4=inf", 4),
        ({"nonfinite": "skip", "most_skipped": 1}, "train.loss:4=nan,train.gradient:6=nan", 6),
    ],
)
def test_after_a_number_that_is_none_nothing_changes_the_weights_until_it_is_read(
    shop: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], fault: str, bad: int, request: Any
) -> None:
    monkeypatch.setattr(agreement_module, "WITHIN", 1e9)
    run = run_of(shop, request.node.name, train=train | {"log_every": 9}, **ADAMW)
    seen: list[dict[str, Tensor]] = []
    step = Trainer.train_step

    def kept(trainer: Trainer, portion: Any) -> Any:
        measured = step(trainer, portion)
        seen.append({name: weight.clone() for name, weight in trainer.engine.weights(keep=True).items()})
        return measured

    monkeypatch.setattr(Trainer, "train_step", kept)
    with pytest.raises(UserError, match=f"step {bad}: the .* is no number in process 0"):
        trained(run, monkeypatch, fault)
    assert len(seen) == 9  # as far as the line of the log
    same = [all(torch.equal(one[name], other[name]) for name in one) for one, other in pairwise(seen)]
    left_out = {4, *range(bad, 10)}
    assert same == [number in left_out for number in range(2, 10)]
    assert not (Path(run.output.folder) / "checkpoints").exists()


def test_slow_steps_are_read_more_often_than_quick_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(agreement_module.time, "monotonic", lambda: now[0])
    for seconds, every in ((0.25, 20), (2.0, 2), (60.0, 1)):
        agreement, read = Agreement(torch.device("cpu"), most=0), []
        for step in range(43):
            agreement.on(step, torch.zeros(()), torch.zeros(()), stop=step == 30, save=False)
            now[0] += seconds
            if agreement.overdue:
                read += [(step, verdict.step, verdict.stop) for verdict in agreement.read()]
        assert [verdict for _, verdict, _ in read] == list(range(len(read)))
        assert {at for at, _, _ in read} == {0, *range(1, 43, every)}
        assert [verdict for _, verdict, stop in read if stop] == [30]


def test_the_scaler_of_fp16_mends_its_own_and_leaves_out_what_is_agreed_on(shop: Path) -> None:
    accelerator = make_accelerator()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # type: ignore[assignment]  # of a GPU elsewhere
    layer = torch.nn.Linear(2, 1, bias=False)
    engine = Engine(accelerator, layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True))
    accelerator.unscale_gradients = lambda: accelerator.scaler.unscale_(engine.optimizer.optimizer)  # type: ignore[method-assign]
    try:
        weights, scales = [layer.weight.clone()], []
        for factor, left_out in ((1.0, 0.0), (float("nan"), 0.0), (1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0)):
            engine.backward(factor * layer(torch.ones(1, 2)).sum())
            assert engine.clip(1.0) is None
            engine.update(torch.tensor(left_out))
            weights.append(layer.weight.detach().clone())
            scales.append(accelerator.scaler.get_scale())
    finally:
        accelerator.scaler = None
    moved = [not torch.equal(one, other) for one, other in pairwise(weights)]
    assert moved == [True, False, False, False, True]
    assert scales == [8.0, 4.0, 4.0, 2.0, 2.0]
