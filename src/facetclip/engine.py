"""The engine under a training: what the launcher set up, checked against what was asked for."""

import os

import torch
from accelerate import Accelerator, DistributedType

from facetclip.collectives import join_processes
from facetclip.errors import UserError

ENGINES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
UNSHARDED = ("zero_shot", "probe", "prompt")


def make_accelerator() -> Accelerator:
    """The engine that the launcher set up; UserError where it is not the one that was asked for."""
    join_processes("nccl" if torch.cuda.is_available() else "gloo")
    try:
        # Told only by the device that is there: of several processes on the processor each would believe to be alone.
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
    except ValueError as error:
        raise UserError(f"the launcher's settings cannot be used on this machine: {error}") from error
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if accelerator.distributed_type not in ENGINES or (sharded and not accelerator.is_fsdp2):
        raise UserError(f"the engine {accelerator.distributed_type.value} is not one of accelerate_configs/")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not sharded:
        raise UserError("FSDP was asked for, but accelerate ignores it here (it needs GPUs); use cpu.yaml or ddp.yaml")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"{asked} processes were launched, but each believes to be one of {accelerator.num_processes}; "
            "use a file of accelerate_configs/"
        )
    return accelerator


def check_mode(accelerator: Accelerator, mode: str) -> None:
    """UserError where an engine that shards the weights is to train a mode that reads them outside a forward pass."""
    if accelerator.distributed_type == DistributedType.FSDP and mode in UNSHARDED:
        raise UserError(f"tuning.mode {mode!r} trains too little to shard; use accelerate_configs/ddp.yaml")
