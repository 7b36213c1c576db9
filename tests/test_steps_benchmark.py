"""What the benchmark of a step promises of its contenders."""

from typing import Any

import pytest
import torch
from benchmarks.step import compare, gpu_contenders, ladder
from benchmarks.stepping.spec import Spec
from benchmarks.stepping.worker import flops
from torch import nn


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class Compiled:
    """A contender whose model is compiled, by a backend that needs no compiler."""

    def __init__(self) -> None:
        self.graphs, self.model = 0, Doubled(4, 4)
        self.model.compile(backend=self.counted)

    def counted(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph

    def once(self) -> None:
        self.model(torch.ones(2, 4)).sum().backward()


def test_counting_operations_leaves_nothing_uncompiled() -> None:
    contender = Compiled()
    assert flops(contender)["flops"] > 0
    contender.once()
    assert contender.graphs == 1


class Contender:
    """Stands where a worker process does; `fails` at its so-manieth step."""

    facts: dict[str, Any] = {}

    def __init__(self, fails: int | None) -> None:
        self.fails, self.steps, self.closed = fails, 0, False

    def ask(self, order: str) -> dict[str, Any]:
        if order.startswith("steps"):
            self.steps += 1
            if self.fails is not None and self.steps > self.fails:
                raise RuntimeError("a trace\nout of memory")
        return {"flops": 10, "wall": 0.5, "processor": 0.5, "flops per second": 100.0, "bytes": 2**30}

    def close(self) -> None:
        self.closed = True


class Ring:
    """Stands where processes are made."""

    def __init__(self, clock: str = "processor", **fails: int | None) -> None:
        self.clock, self.made = clock, {who: Contender(at) for who, at in fails.items()}

    def worker(self, spec: Spec) -> Contender:
        return self.made[spec.who]


SPECS: dict[str, Spec] = {"ours": Spec(), "open_clip": Spec(who="open_clip"), "transformers": Spec(who="transformers")}


@pytest.mark.parametrize(("clock", "fails"), [("wall", 0), ("processor", 0), ("processor", 1)])
def test_one_contender_that_fails_ends_itself_alone(clock: str, fails: int) -> None:
    ring: Any = Ring(clock, ours=None, open_clip=fails, transformers=None)
    found = compare(ring, SPECS, rounds=3, steps=1)
    assert found["failed"] == {"open_clip": "out of memory"}
    assert list(found["contenders"]) == ["ours", "transformers"]
    assert all(len(row["seconds of a step"]) == 3 for row in found["contenders"].values())
    assert all(each.closed for each in ring.made.values())


def test_without_the_one_that_others_are_compared_with_nobody_goes_on() -> None:
    ring: Any = Ring(ours=1, open_clip=None, transformers=None)
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(ring, SPECS, rounds=3, steps=1)
    assert all(each.closed for each in ring.made.values())


def test_no_round_but_the_first_begins_when_time_is_up() -> None:
    ring: Any = Ring(ours=None, open_clip=None, transformers=None)
    found = compare(ring, SPECS, rounds=5, steps=1, until=0.0)
    assert all(len(row["seconds of a step"]) == 1 for row in found["contenders"].values())


def test_a_rung_that_a_device_lacks_says_why_and_the_next_is_tried() -> None:
    class Rungs(Ring):
        def worker(self, spec: Spec) -> Contender:
            return Contender(0 if spec.settings.get("train.recompute") else None)

    ring: Any = Rungs()
    found = ladder(ring, Spec(), 2, 1, ["train.recompute", "without: SDPA"])
    assert found["train.recompute"] == {"failed": "out of memory"}
    assert found["without: SDPA"]["times the whole step"]["median"] == 1.0


def test_where_memory_is_scarce_few_contenders_lie_in_it() -> None:
    several = gpu_contenders(Spec(), ["open_clip", "transformers"], several=True)
    few = gpu_contenders(Spec(), ["open_clip", "transformers"], several=False)
    assert next(iter(several)) == next(iter(few)) == "ours"
    assert set(few) == {"ours", "ours, compiled", "open_clip", "open_clip, compiled"}
    assert set(several) - set(few) == {"ours, text locked", "open_clip, text locked", "transformers"}
