"""DeepSpeed's ZeRO (Rajbhandari et al. 2020): optimizer state (stage 1), gradients (2) and weights (3) are shared out.

It holds what it shares out as pieces of flat tensors of its own and takes its own steps; what is read from it and given
back to it here is by parameter and whole, so its checkpoints are those of every other engine.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from facetclip.engine import Engine
from facetclip.errors import UserError

BUCKET = 50_000_000  # gradients that are sent at once; DeepSpeed's own half a billion would be a buffer of 2 GB, or two
OFFLOAD = {"offload_optimizer": "OPTIMIZER", "offload_param": "PARAM"}  # section -> part of the launcher's variable


class ZeroEngine(Engine):
    """A model under ZeRO. `clip`: the longest gradient, 0 for any."""

    def __init__(
        self, accelerator: Accelerator, reader: nn.Module, optimizer: torch.optim.Optimizer, *, clip: float
    ) -> None:
        plugin: Any = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config["gradient_clipping"] = clip
        super().__init__(accelerator, reader, optimizer)
        self._zero = self.model.optimizer
        self._stage = self.model.zero_optimization_stage()

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Forward and backward of one part of a batch; mixed precision is DeepSpeed's affair."""
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients."""
        self.model.backward(loss * self.accelerator.num_processes)

    def clip(self, limit: float) -> Tensor:
        """The norm of this process's pieces of the gradient; it is shortened within the step.

        DeepSpeed's own norm of a gradient that is no number is one.
        """
        return torch.stack([torch.linalg.vector_norm(part) for part in self.gradients]).norm()

    @property
    def gradients(self) -> list[Tensor]:
        """Those of this process's pieces."""
        return [part for parts in self._zero.averaged_gradients.values() for part in parts]

    def update(self, left_out: Tensor) -> None:
        """Change the weights, unless the number `left_out` is 1, and forget the gradients. DeepSpeed's own step waits
        for the device anyway."""
        if left_out.item():
            self.forget()
        else:
            self.model.step()

    def forget(self) -> None:
        """Forget the gradients."""
        self._zero.zero_grad()
        for held in (self._zero.averaged_gradients, getattr(self._zero, "all_grad_tensors", {})):
            held.clear()
        self._zero.micro_step_id = 0

    def gathered(self) -> AbstractContextManager[None]:
        """Within the block the reader's weights are whole on every process."""
        return self._whole(None)

    def _whole(self, writer: int | None) -> AbstractContextManager[Any]:
        from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore[reportMissingImports]

        if self._stage < 3:
            return nullcontext()
        return GatheredParameters(list(self.reader.parameters()), modifier_rank=writer)

    def weights(self, *, keep: bool) -> dict[str, Tensor]:
        """The trained weights."""
        with self.gathered():
            return {name: weight.detach().cpu().clone() for name, weight in self.trained.items()} if keep else {}

    def optimizer_state(self, *, keep: bool) -> dict[str, Tensor]:
        """The state of every weight, put together one after the other."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        self._link()
        found = {}
        for name, weight in self.trained.items():
            for key, value in self._entries.items():
                joined: Any = value if value.ndim == 0 else safe_get_full_optimizer_state(weight, key)
                if keep:
                    found[f"{name}.{key}"] = joined.detach().cpu().clone()
        return found

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Go on from whole tensors."""
        with self._whole(0):
            for name, weight in self.trained.items():
                weight.copy_(weights[name])
        self._zero.refresh_fp32_params()
        keys = {full_name.rpartition(".")[2]: value for full_name, value in optimizer.items()}
        for flat in self._flat:
            for key, value in keys.items():
                empty = value.to(flat.device, copy=True) if value.ndim == 0 else torch.zeros_like(flat)
                self._inner.state[flat][key] = empty
        self._link()
        for full_name, value in optimizer.items():
            name, _, key = full_name.rpartition(".")
            if value.ndim:
                self._restore(self.trained[name], key, value)

    def _restore(self, weight: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state  # pyright: ignore[reportMissingImports]

        whole = value.to(self.accelerator.device)
        if self._stage < 3:
            safe_set_full_optimizer_state(weight, whole, key)
            return
        held: Any = weight
        size = (
            held.ds_tensor.numel()
        )  # all shares are as long as the first, so the last may be longer than what is left
        padded = nn.functional.pad(whole.flatten(), (0, size * self.accelerator.num_processes - whole.numel()))
        rank = self.accelerator.process_index
        safe_set_local_optimizer_state(weight, padded[rank * size : (rank + 1) * size], key)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = self._zero.optimizer
        return inner

    @property
    def _flat(self) -> list[Tensor]:
        """This process's fp32 pieces, which the inner optimizer steps on."""
        zero = self._zero
        flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flat

    @property
    def _entries(self) -> dict[str, Tensor]:
        return self._inner.state.get(self._flat[0], {})

    def _link(self) -> None:
        """Tell the weights where their state is. DeepSpeed (0.19.7) does so itself after the very first group's first
        step, when the state of the other groups is yet to be made."""
        if self._stage < 3 and self._entries:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()


def zero_plugin(*, gpu: bool) -> DeepSpeedPlugin:
    """The stage is the launcher's; what a training needs of DeepSpeed is said here, in one place."""
    given = launcher_config()
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    # Without contiguous gradients DeepSpeed (0.19.7) leaves those of a processor unreduced, and says nothing.
    sharing: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
    }
    sharing |= given.get("zero_optimization", {})
    for section, part in OFFLOAD.items():
        launched = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none")
        for device in (launched, (sharing.get(section) or {}).get("device", "none")):
            if device != "none":
                # Offloaded gradients lie elsewhere (DeepSpeed 0.19.7), where neither norm nor guard would find them.
                raise UserError(f"ZeRO: {section} to {device!r} is not supported; take 'none', or a higher stage")
    if sharing["stage"] not in (1, 2, 3):
        raise UserError(f"ZeRO stage {sharing['stage']} is not one of 1, 2 and 3; use a file of accelerate_configs/")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision == "fp16":
        raise UserError("ZeRO trains in bf16 or fp32 here; use --mixed_precision bf16, or ddp.yaml for fp16")
    for name in ("bf16", "fp16"):
        if given.get(name, {}).get("enabled") is True and name != precision:
            raise UserError(
                f"precision is {name} by the DeepSpeed file and {precision} by the launcher (--mixed_precision): "
                "take it out of the file, or make both the same"
            )
    config = {
        "zero_optimization": sharing,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 1,  # its batch size only counts; batches are ours
        # As the other engines do it: weights stay fp32, and a forward pass computes in bf16 what is safe to.
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
    }
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # by which accelerate refuses what is put together here
    return DeepSpeedPlugin(hf_ds_config=config)


def launcher_config() -> dict[str, Any]:
    """DeepSpeed's own JSON file where the launcher names one, {} otherwise. UserError where it cannot be read."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return {}
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a DeepSpeed configuration: {error}") from error
    return found
