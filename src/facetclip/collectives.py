"""What processes say to each other beyond the gradients."""

import atexit
import gc
import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

# The first process measures, finishes and registers a model while the others wait, for longer than NCCL's ten minutes.
# What hangs in a training is found by its watchdog (`facetclip.progress`).
PATIENCE = timedelta(hours=6)


def processes() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def join_processes(backend: str) -> None:
    """Form the process group of a launch that may be restarted (`--max_restarts`), under a name of its own a start.

    The launcher's store outlives its workers, and without a prefix gloo reads the addresses of dead ones in it.
    """
    started = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or distributed.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    stores: Any = distributed  # whose classes are public, though not in its __all__
    store = stores.TCPStore(*address, world, is_master=rank == 0 and not hosted)
    prefixed = stores.PrefixStore(f"start-{started}", store)
    distributed.init_process_group(backend, store=prefixed, timeout=PATIENCE, rank=rank, world_size=world)


def close_at_exit() -> None:
    """Leave the process group before the interpreter ends, on every way out but an error that nobody caught, when
    others may not answer.

    gloo's threads let go of a collective's tensors after it is done, and need the interpreter for it: where it is gone
    by then the process aborts. They end with the group, and that with the last model that holds it.
    """
    if distributed.is_initialized():
        atexit.unregister(_close)
        atexit.register(_close)


def _close() -> None:
    if hasattr(sys, "last_type"):
        return
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()


def send_in_bf16(model: DistributedDataParallel) -> None:
    """Let `model`'s gradients be rounded to bf16 before they are summed over processes: half the bytes.

    As torch's own hook does, which refuses gloo, and divides what it has rounded already.
    """
    model.register_comm_hook(None, _averaged_in_bf16)


def _averaged_in_bf16(
    _: None,
    bucket: distributed.GradBucket,  # pyright: ignore[reportPrivateImportUsage]  # torch insists on it
) -> Future[Tensor]:
    gradients = bucket.buffer()
    rounded = (gradients / distributed.get_world_size()).bfloat16()
    work: Any = distributed.all_reduce(rounded, async_op=True)
    return work.get_future().then(lambda summed: gradients.copy_(summed.value()[0]))


class _Gather(torch.autograd.Function):
    """All processes' rows, one process after the other; the gradient of a row is the sum of what all have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """[n, d] -> [processes * n, d]."""
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """This process's rows of the summed gradient."""
        summed = gradients[0].contiguous()
        distributed.all_reduce(summed)
        first = distributed.get_rank() * ctx.rows
        return summed[first : first + ctx.rows]


def gather_rows(rows: Tensor) -> Tensor:
    """Equally many rows [n, d] of every process as [processes * n, d]; exact gradients flow back to their owners."""
    gathered: Any = _Gather.apply(rows) if processes()[1] > 1 else rows
    return gathered


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, in place, on all of them."""
    if processes()[1] > 1:
        distributed.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every process's `value`, small and of plain types, on all of them."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    rank, count = processes()
    if count == 1:
        return [value]
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    lengths = torch.zeros(count, dtype=torch.int64, device=device)
    lengths[rank] = len(text)
    sizes = sum_over_processes(lengths).tolist()
    padded = torch.zeros(count, max(sizes), dtype=torch.int32, device=device)
    padded[rank, : len(text)] = text.to(device)
    rows = sum_over_processes(padded).to(torch.uint8).cpu()
    return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes, strict=True)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is sharded over the processes, put together on all of them; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of `tensors` put together, one after the other; those who do not `keep` them only help. All call it."""
    kept = {}
    for name, tensor in tensors.items():
        joined = whole(tensor.detach())
        if keep:
            kept[name] = joined.cpu() if isinstance(tensor, DTensor) else joined
    return kept


def held_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor as this process's share of it, where `other`, of its shape, is sharded."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def share_of(rows: np.ndarray) -> np.ndarray:
    """This process's part of `rows`: neighbours, whose shards are too; as many as the others have (the last is repeated
    where short)."""
    rank, count = processes()
    size = -(-len(rows) // count)
    mine = rows[rank * size : (rank + 1) * size]
    return np.concatenate([mine, np.repeat(rows[-1:], size - len(mine))])


def join_shares(part: Tensor, total: int) -> Tensor:
    """What each process made of its share, [n, d], back in the order of all `total` rows, on every process."""
    return gather_rows(part)[:total]
