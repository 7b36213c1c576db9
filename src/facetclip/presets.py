"""What a run file leaves open: steps and rates by how much is labelled, what is trained, how wide the model is.

Fine-tuning CLIP at the rates of its pre-training destroys it, so every mode has its own; they were chosen on ViT-B
checkpoints (width 768, as published for FLYP, WiSE-FT, CoOp and CLIP-LoRA) and on the starter (width 128). In between,
those of the towers fall with the square of the width.
"""

from facetclip.config import Precision, RunConfig

WIDTH = 768  # of the image tower that the rates below are for
WIDEST_RAISE = 40.0
TOWER_RATES = {"full": 1e-5, "image_tower": 1e-5, "last_blocks": 2e-5}
OWN_RATES = {"probe": 2e-3, "prompt": 2e-3, "zero_shot": 1e-5}  # of what is new, whatever the width
LORA_RATE = 2e-4
PASSES = 60.0  # image passes = PASSES * labelled ** POWER: 14 epochs of 400 photos, 6 of ten thousand, 2 of a million
POWER = 0.75
CACHED_PASSES = 20  # times as many where a pass costs nothing
LEAST_STEPS = 40
VALIDATIONS = 20


def learning_rate_for(mode: str, width: int) -> float:
    """The peak rate for AdamW.

    >>> learning_rate_for("full", 768), round(learning_rate_for("full", 128), 6)
    (1e-05, 0.00036)
    """
    if mode in OWN_RATES:
        return OWN_RATES[mode]
    raised = min(WIDEST_RAISE, (WIDTH / width) ** 2)
    return LORA_RATE * raised**0.5 if mode == "lora" else TOWER_RATES[mode] * raised


def steps_for(labelled: int, batch: int, *, cached: bool = False) -> int:
    """How many updates.

    >>> steps_for(400, 64), steps_for(10_000, 64), steps_for(1_000_000, 1024)
    (84, 938, 1853)
    """
    passes = PASSES * labelled**POWER * (CACHED_PASSES if cached else 1)
    return max(LEAST_STEPS, round(passes / batch))


def completed(run: RunConfig, *, labelled: int, width: int, precision: Precision = "fp32") -> RunConfig:
    """`run` with nothing left open. `labelled`: training photos with a label; `width`: of the image tower; `precision`:
    what the launcher has it trained in."""
    mode = run.tuning.mode
    cached = run.tuning.cache and mode in ("probe", "prompt")
    steps = run.train.steps or steps_for(labelled, run.train.batch, cached=cached)
    every = run.validation.every or max(1, -(-steps // VALIDATIONS))
    warmup = run.optimizer.warmup_steps
    optimizer = {
        "lr": run.optimizer.lr or learning_rate_for(mode, width),
        "warmup_steps": min(500, steps // 10) if warmup is None else warmup,
    }
    return run.model_copy(
        update={
            "train": run.train.model_copy(update={"steps": steps, "precision": precision}),
            "optimizer": run.optimizer.model_copy(update=optimizer),
            "validation": run.validation.model_copy(update={"every": every}),
            "checkpoint": run.checkpoint.model_copy(update={"every": run.checkpoint.every or every}),
        }
    )
