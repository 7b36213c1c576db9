"""What one contender is asked for."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]
Who = Literal["ours", "open_clip", "transformers"]


@dataclass(frozen=True)
class Spec:
    """One training to be stepped.

    `locked`: the text tower is not trained. `settings`: of our run file, by `section.key`. `without`: parts of our step
    that are taken out again (`benchmarks.stepping.ours.REMOVED`). `threads`: of the processor. `shards`, `photos`: the
    folders from which ours and the transformers example read; where empty, photos lie on the device. `start`: in place
    of random weights of the shape.
    """

    who: Who = "ours"
    shape: str = "ViT-B-32"
    batch: int = 32
    precision: Precision = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    locked: bool = False
    compiled: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    threads: int = 1
    shards: str = ""
    photos: str = ""
    start: str = ""

    @property
    def compiles(self) -> bool:
        """Whether its first step compiles something."""
        return self.compiled or bool(self.settings.get("train.compile"))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        table = json.loads(text)
        return cls(**table | {"without": tuple(table["without"])})
