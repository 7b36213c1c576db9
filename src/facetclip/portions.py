"""Work in portions: portion i of n takes every n-th piece, so that each process of a launch knows its own by itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from facetclip.errors import UserError


@dataclass(frozen=True)
class Portion:
    """Portion `number`, counted from 0, of `of`."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UserError(f"part {self}: parts of {self.of} are counted from 0 to {self.of - 1}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def among(self, count: int) -> range:
        """Which of `count` numbered pieces are its own.

        >>> list(Portion(1, 3).among(8))
        [1, 4, 7]
        """
        return range(self.number, count, self.of)


WHOLE = Portion(0, 1)


def parse_portion(text: str) -> Portion:
    """`2/8` -> Portion; UserError where it is no such thing.

    >>> parse_portion("2/8")
    Portion(number=2, of=8)
    """
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise UserError(f"--part {text!r}: expected a part and how many there are, such as 0/8")
    return Portion(int(number), int(of))


def launched_portion(environment: Mapping[str, str]) -> Portion:
    """The portion of this process, as a launcher's RANK and WORLD_SIZE or a SLURM array say; WHOLE where none does.

    In an array of launches each process of each task has a portion of its own.

    >>> launched_portion({"RANK": "3", "WORLD_SIZE": "4"})
    Portion(number=3, of=4)
    """
    rank, world = (_whole_number(environment, *said) for said in (("RANK", 0), ("WORLD_SIZE", 1)))
    first = _whole_number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    task = _whole_number(environment, "SLURM_ARRAY_TASK_ID", first) - first
    tasks = _whole_number(environment, "SLURM_ARRAY_TASK_COUNT", 1)
    if not 0 <= task < tasks:
        raise UserError(f"SLURM array: task {task + first} of {tasks} from {first}; expected an array without gaps")
    return Portion(task * world + rank, tasks * world)


def _whole_number(environment: Mapping[str, str], name: str, without: int) -> int:
    text = environment.get(name, str(without))
    if not text.isdecimal():
        raise UserError(f"{name}: expected a whole number, found {text!r}")
    return int(text)
