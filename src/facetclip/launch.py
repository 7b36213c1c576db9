"""What the launcher set up, checked against what was asked for."""

import os
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch import nn

from facetclip.collectives import PATIENCE, close_at_exit, join_processes, send_in_bf16
from facetclip.config import RunConfig
from facetclip.engine import Engine
from facetclip.errors import UserError
from facetclip.zero import ZeroEngine, launcher_config, zero_plugin

WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # weights on every process
SHARDED = {"FSDP": DistributedType.FSDP, "DeepSpeed": DistributedType.DEEPSPEED}
PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
UNSHARDED = ("zero_shot", "probe", "prompt")


def make_accelerator() -> Accelerator:
    """The accelerator that the launcher set up; UserError where it is not the one that was asked for."""
    gpu, zero = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"), _asked("DeepSpeed")
    if not gpu and os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        # accelerate says nothing, and computes in fp32, or without scaling the loss
        raise UserError("fp16 needs a GPU; use --mixed_precision bf16, or no for fp32")
    join_processes("nccl" if gpu else "gloo")
    try:
        if zero:
            plugin = zero_plugin(gpu=gpu)
            check_waiting(plugin.zero_stage, gpu=gpu)
            group = InitProcessGroupKwargs(backend="nccl" if gpu else "gloo", timeout=PATIENCE)
            accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[group])
            _leave_loading_alone()
        else:
            # Told only by the device that is there: of several processes on the processor each would think it is alone.
            accelerator = Accelerator(cpu=not gpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    except (ValueError, ImportError) as error:
        raise UserError(f"the launcher's settings cannot be used on this machine: {error}") from error
    close_at_exit()
    kind = accelerator.distributed_type
    for name, wanted in SHARDED.items():
        if _asked(name) and kind != wanted:
            raise UserError(f"{name} was asked for, but accelerate takes {kind.value} here; use cpu.yaml or ddp.yaml")
    if kind not in (*WHOLE, *SHARDED.values()) or (kind == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise UserError(f"the engine {kind.value} is not one of accelerate_configs/")
    _leave_outputs_alone(accelerator)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"{asked} processes were launched, but each believes to be one of {accelerator.num_processes}; "
            "use a file of accelerate_configs/"
        )
    return accelerator


def _leave_outputs_alone(accelerator: Accelerator) -> None:
    """What the model computes in fp32 for good reason, its logits, leaves FSDP2 so in mixed precision, too."""
    plugin: Any = accelerator.state.fsdp_plugin if accelerator.is_fsdp2 else None
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def _asked(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "false").lower() == "true"


def check_waiting(stage: int, *, gpu: bool) -> None:
    """UserError where ZeRO would compute with weights that are not there yet.

    Stage 3 (DeepSpeed 0.19.7) waits for the last of several gathers alone. On a GPU's stream they come in order; over
    gloo an earlier one may still be on its way.
    """
    if stage == 3 and not gpu:
        raise UserError("ZeRO stage 3 needs GPUs: without, it now and then trains on wrong weights; use stage 2")


def _leave_loading_alone() -> None:
    """Models are loaded whole and shared out when they are prepared, not while they are read."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def make_engine(
    accelerator: Accelerator, reader: nn.Module, optimizer: torch.optim.Optimizer, run: RunConfig
) -> Engine:
    """The engine of this launch around a model, as `run` asks for it."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ZeroEngine(accelerator, reader, optimizer, clip=run.optimizer.clip_norm)
    engine = Engine(accelerator, reader, optimizer)
    if run.train.reduce == "bf16" and accelerator.num_processes > 1:
        send_in_bf16(engine.model)
    return engine


def precision_of(accelerator: Accelerator) -> Any:
    """What a forward pass computes in: `fp32`, `bf16` or `fp16`."""
    plugin: Any = accelerator.state.deepspeed_plugin
    if plugin is not None:  # of autocast within DeepSpeed accelerate does not know
        return "bf16" if plugin.deepspeed_config["torch_autocast"]["enabled"] else "fp32"
    return PRECISIONS.get(accelerator.mixed_precision, accelerator.mixed_precision)


def check_engine(accelerator: Accelerator, run: RunConfig) -> None:
    """UserError where the engine would not do what the run file says, with both sides; or cannot do it."""
    mode, kind = run.tuning.mode, accelerator.distributed_type
    if kind in SHARDED.values() and mode in UNSHARDED:
        raise UserError(f"tuning.mode {mode!r} trains too little to shard; use accelerate_configs/ddp.yaml")
    if kind in SHARDED.values() and run.train.micro_batch == "auto":
        raise UserError(
            "train.micro_batch 'auto' tries what fits, which processes that share weights cannot do alone; say how many"
        )
    if kind in SHARDED.values() and run.train.reduce != "fp32":
        raise UserError(
            f"train.reduce {run.train.reduce!r} is for DDP (accelerate_configs/ddp.yaml): FSDP2 sends gradients in "
            "what a forward pass computes in, and ZeRO as its own file says (communication_data_type)"
        )
    if kind == DistributedType.DEEPSPEED:
        if run.optimizer.name == "muon":
            raise UserError("optimizer.name 'muon' needs whole matrices, which ZeRO cuts up; use 'adamw', or ddp.yaml")
        plugin: Any = accelerator.state.deepspeed_plugin
        if run.train.average and plugin.zero_stage == 3:
            raise UserError("train.average needs whole weights, which ZeRO stage 3 cuts up; use stage 2, or fsdp2.yaml")
    found = [
        f"{what} is {theirs} by the launcher and {ours} by the run file ({key})"
        for what, theirs, key, ours in _said_twice(accelerator, run)
        if theirs != ours
    ]
    if found:
        raise UserError(f"{'; '.join(found)}: take it out of the launcher's configuration, or make both the same")


def _said_twice(accelerator: Accelerator, run: RunConfig) -> list[tuple[str, Any, str, Any]]:
    """(what, the launcher's value, run-file key, its value) of all that both speak of."""
    share = _micro_batch(accelerator, run)
    ours = {
        "gradient_accumulation_steps": ("train.batch / processes / train.micro_batch", _accumulation(accelerator, run)),
        "gradient_clipping": ("optimizer.clip_norm", run.optimizer.clip_norm),
        "train_batch_size": ("train.batch", run.train.batch),
        "train_micro_batch_size_per_gpu": ("train.batch / processes, or train.micro_batch", share),
        "optimizer": ("optimizer.name", run.optimizer.name),
        "scheduler": ("optimizer.warmup_steps and final_lr", "cosine"),
    }
    theirs: dict[str, Any] = {}
    for name in ("gradient_accumulation_steps", "gradient_clipping"):
        said = os.environ.get(f"ACCELERATE_{name.upper()}", "auto")
        if said not in ("auto", "none") and float(said) != (1 if name.startswith("gradient_acc") else -1):
            theirs[name] = float(said)
    if _asked("DeepSpeed"):
        theirs |= {name: value for name, value in launcher_config().items() if name in ours and value != "auto"}
    said_twice = [(name, value, *ours[name]) for name, value in theirs.items()]
    if run.train.precision:
        said_twice.append(("precision", precision_of(accelerator), "train.precision", run.train.precision))
    return said_twice


def _micro_batch(accelerator: Accelerator, run: RunConfig) -> int:
    micro, share = run.train.micro_batch, run.train.batch // accelerator.num_processes
    return micro if isinstance(micro, int) else share


def _accumulation(accelerator: Accelerator, run: RunConfig) -> int:
    return -(-(run.train.batch // accelerator.num_processes) // _micro_batch(accelerator, run))
