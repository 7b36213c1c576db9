"""Several processes of one training, forked from this warm one: a launch without the launcher's twenty seconds."""

import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState

from facetclip import faults

PATIENCE = 8.0  # seconds that the others have to end by themselves

FSDP2 = {  # what accelerate_configs/fsdp2.yaml becomes in the environment
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "CLIPEncoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


WAITED = (
    "all_reduce",
    "reduce",
    "reduce_scatter_tensor",
    "all_gather_base",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
)


@dataclass(frozen=True)
class Ended:
    """Exit codes by rank, negative for a signal, and what each process wrote to its standard error."""

    codes: list[int]
    errors: list[str]


def launch_fleet(
    folder: Path,
    world: int,
    work: Callable[[], int | None],
    *,
    fault: str = "",
    seconds: float = 120,
    engine: str = "ddp",
    asked: bool = False,
) -> Ended:
    """`work` in `world` processes joined by gloo. As a launcher does, it ends the others when one has failed; `asked`:
    by SIGTERM first, and at once."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{time.monotonic_ns()}"
    children = [_fork(folder, store, rank, world, work, fault, engine) for rank in range(world)]
    codes: dict[int, int] = {}
    limit, killed_at = time.monotonic() + seconds, float("inf")
    while len(codes) < world:
        for rank, child in enumerate(children):
            if rank not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                    if codes[rank]:
                        killed_at = min(killed_at, time.monotonic() + PATIENCE)
                        if asked:
                            _send(signal.SIGTERM, children, codes)
        if time.monotonic() > min(limit, killed_at):
            _send(signal.SIGKILL, children, codes)
            limit = killed_at = float("inf")
        time.sleep(0.02)
    errors = [(folder / f"error-{rank}.txt").read_text() for rank in range(world)]
    return Ended([codes[rank] for rank in range(world)], errors)


def _send(number: int, children: list[int], ended: Collection[int]) -> None:
    """A signal to those that live."""
    for rank, child in enumerate(children):
        if rank not in ended:
            os.kill(child, number)


def load_deepspeed() -> bool:
    """Import it here and now, so that the processes to come need not; False where it is not installed."""
    os.environ["DS_ACCELERATOR"] = "cpu"  # where it would look around and report at length
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import deepspeed  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            return False
    return True


def take_zero(stage: str) -> None:
    """The environment of accelerate_configs/deepspeed_zero*.yaml, and gathers over gloo that are waited for.

    ZeRO-3 waits for the last of several gathers alone, which is right for a GPU's stream and wrong for gloo. Here each
    is waited for when it is asked for; facetclip itself refuses stage 3 without GPUs.
    """
    import facetclip.launch

    communication: Any = importlib.import_module("deepspeed.comm.torch")
    backend = communication.TorchBackend

    warnings.simplefilter("ignore")  # DeepSpeed's own
    communication.build_shm_op = lambda: None  # which would call a compiler
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = "zero_stage,mixed_precision"
    del os.environ["ACCELERATE_USE_CPU"]  # with it DeepSpeed is skipped
    facetclip.launch.check_waiting = lambda stage, *, gpu: None
    for name in WAITED:
        setattr(backend, name, waited(getattr(backend, name)))

    def gather_each(self: Any, outputs: list[Any], inputs: list[Any], group: Any = None, async_op: bool = False) -> Any:
        for output, part in zip(outputs, inputs, strict=True):
            torch.distributed.all_gather_into_tensor(output, part, group=group)
        return Done() if async_op else None

    backend.all_gather_coalesced = gather_each


class Done:
    """A handle on what has ended."""

    def wait(self) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def waited(collective: Callable[..., Any]) -> Callable[..., Any]:
    """A collective whose handle is given out when it has ended."""

    def call(*args: Any, **named: Any) -> Any:
        handle = collective(*args, **named)
        if hasattr(handle, "wait"):
            handle.wait()
        return handle

    return call


def _fork(
    folder: Path, store: Path, rank: int, world: int, work: Callable[[], int | None], fault: str, engine: str
) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for stream, name in ((1, "output"), (2, "error")):
            os.dup2(os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "FACETCLIP_FAULT": fault}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        os.environ["ACCELERATE_USE_CPU"] = "true"
        faults._reached.clear()
        faulthandler.disable()  # it would speak on the parent's screen
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.set_num_threads(1)
        group: Any = torch.distributed
        group.init_process_group("gloo", store=group.FileStore(str(store), world), rank=rank, world_size=world)
        if engine.startswith("zero"):
            take_zero(engine[-1])
        if engine == "fsdp2":
            os.environ |= FSDP2
            # accelerate shards on GPUs alone: for it these processes are such.
            PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
