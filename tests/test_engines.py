"""Every engine takes the same steps and leaves the same model; a run may go from one to another."""

import atexit
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from fleet import FSDP2, launch_fleet, load_deepspeed
from small_shop import make_shards
from test_trainer import Losses, make_run

from facetclip.batches import PixelReader
from facetclip.config import RunConfig
from facetclip.errors import UserError
from facetclip.index import open_index
from facetclip.interruption import REQUEUE, Interrupted
from facetclip.launch import PRECISIONS, make_accelerator
from facetclip.model import AttributeReader, load_model
from facetclip.runs import fit
from facetclip.trainer import Trainer
from facetclip.validation import logits_of
from facetclip.zero import zero_plugin

ROOT = Path(__file__).parents[1]
ENGINES = {"alone": ("ddp", 1), "ddp": ("ddp", 2)} | {name: (name, 2) for name in ("fsdp2", "zero1", "zero2", "zero3")}
NEAR = 1e-4  # rounding, another in each engine and on each processor, grows to 1.5e-5; a wrong factor shows at once
pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_shards(folder / "shards", 60, validation=True)
    Trainer(make_run(folder, output={"folder": str(folder / "warm")}), make_accelerator())
    return folder


def work_of(run: RunConfig, **environment: str) -> Callable[[], int]:
    def work() -> int:
        os.environ |= environment
        trainer = Trainer(run, make_accelerator())
        told = Losses()
        trainer.tracker = told  # type: ignore[assignment]  # as much of a Tracker as is used
        try:
            fit(trainer)
        except Interrupted:
            return REQUEUE
        finally:
            if trainer.accelerator.is_main_process:
                path = Path(run.output.folder) / "losses.json"
                known = json.loads(path.read_text()) if path.exists() else {}
                path.write_text(json.dumps(known | told.values))
        return 0

    return work


def launch(run: RunConfig, engine: str, fault: str = "", **environment: str) -> list[int]:
    kind, world = ENGINES[engine]
    if kind.startswith("zero") and not load_deepspeed():
        pytest.skip("DeepSpeed is not installed")
    folder = Path(run.output.folder) / "fleet"
    ended = launch_fleet(folder, world, work_of(run, **environment), engine=kind, fault=fault)
    assert fault or ended.codes == [0] * world, ended.errors
    return ended.codes


CONFIGURATIONS = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_launcher_reads_the_configurations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")  # the launcher sets it in its own environment
    arguments = ["--config_file", str(ROOT / "accelerate_configs" / f"{name}.yaml"), "--num_processes", "2", "train.py"]
    asked, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if asked.use_deepspeed:
        asked.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(asked)
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == name[-1]
    else:
        environment = prepare_multi_gpu_env(asked)
    assert asked.use_deepspeed == name.startswith("deepspeed")
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if name == "cpu" else "bf16")
    assert FSDP2.items() <= environment.items() if name == "fsdp2" else "ACCELERATE_USE_FSDP" not in environment


def losses(run: RunConfig) -> list[float]:
    stored = json.loads((Path(run.output.folder) / "losses.json").read_text())
    assert list(map(int, stored)) == list(range(1, len(stored) + 1))
    return list(stored.values())


def scores(run: RunConfig, shop: Path) -> np.ndarray:
    index = open_index(shop / "shards")
    reader = load_model(str(Path(run.output.folder) / "model"))
    pixels = PixelReader(index, reader.preprocessing.size, reader.preprocessing.fit)
    return logits_of(reader, pixels, index.rows("test")).numpy()


def run_of(shop: Path, name: str, **changes: dict[str, Any]) -> RunConfig:
    """Of so low a rate that rounding does not grow to what `NEAR` allows."""
    return make_run(shop, output={"folder": str(shop / name)}, **{"optimizer": {"lr": 0.02}} | changes)


@pytest.fixture(scope="module")
def alone(shop: Path) -> RunConfig:
    run = run_of(shop, "alone")
    launch(run, "alone")
    return run


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "alone"])
def test_an_engine_takes_the_steps_and_leaves_the_model_of_one_process(
    shop: Path, alone: RunConfig, engine: str
) -> None:
    run = run_of(shop, engine)
    launch(run, engine)
    assert losses(run) == pytest.approx(losses(alone), rel=NEAR)
    assert np.allclose(scores(run, shop), scores(alone, shop), atol=NEAR)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "alone"])
def test_stopped_and_resumed_an_engine_changes_no_bit(shop: Path, engine: str) -> None:
    adam = {"optimizer": {"name": "adamw", "lr": 1e-3}, "train": {"average": 0.0 if engine == "zero3" else 0.5}}
    whole, parted = run_of(shop, f"{engine} whole", **adam), run_of(shop, f"{engine} parted", **adam)
    launch(whole, engine)
    assert launch(parted, engine, fault="train.step:7=usr1@1") == [REQUEUE, REQUEUE]
    launch(parted, engine)
    assert losses(parted) == losses(whole)
    assert np.array_equal(scores(parted, shop), scores(whole, shop))


@pytest.mark.parametrize(
    ("first", "then"), [("fsdp2", "alone"), ("ddp", "fsdp2"), ("zero3", "ddp"), ("fsdp2", "zero2")]
)
def test_a_run_may_go_on_under_another_engine(shop: Path, alone: RunConfig, first: str, then: str) -> None:
    run = run_of(shop, f"{first} to {then}")
    assert launch(run, first, fault="train.step:9=term@0") == [REQUEUE] * ENGINES[first][1]
    launch(run, then)
    assert losses(run) == pytest.approx(losses(alone), rel=NEAR)
    assert np.allclose(scores(run, shop), scores(alone, shop), atol=NEAR)


@pytest.mark.parametrize("mode", ["last_blocks", "image_tower", "lora"])
def test_sharded_modes_learn_as_one_process_does(shop: Path, mode: str) -> None:
    found = []
    for engine in ("alone", "fsdp2"):
        run = run_of(shop, f"{mode} {engine}", tuning={"mode": mode, "blocks": 1}, train={"steps": 6})
        launch(run, engine)
        found.append((losses(run), scores(run, shop)))
    assert found[0][0] == pytest.approx(found[1][0], rel=NEAR)
    assert np.allclose(found[0][1], found[1][1], atol=NEAR)
    assert torch.tensor(found[0][1]).isfinite().all()


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_engines_train_in_bf16_with_weights_of_fp32(shop: Path, engine: str) -> None:
    gentle: dict[str, Any] = {"train": {"steps": 6}, "optimizer": {"lr": 0.005}}
    run, exact = run_of(shop, f"{engine} bf16", **gentle), run_of(shop, f"{engine} fp32", **gentle)
    launch(run, engine, ACCELERATE_MIXED_PRECISION="bf16")
    launch(exact, "ddp")
    assert losses(run) == pytest.approx(losses(exact), rel=0.02)
    assert losses(run) != pytest.approx(losses(exact), rel=1e-6)
    reader = load_model(str(Path(run.output.folder) / "model"))
    assert {weight.dtype for weight in reader.parameters()} == {torch.float32}


def gloo_threads() -> list[str]:
    """Threads of this process that carry out collectives."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed under /proc")
def test_no_thread_of_the_group_outlives_the_way_out(shop: Path, tmp_path: Path) -> None:
    """One that lets go of a tensor when the interpreter is gone aborts the process."""

    def work() -> int:
        Trainer(run_of(shop, "leaving"), make_accelerator())
        assert gloo_threads()
        atexit._run_exitfuncs()
        assert not torch.distributed.is_initialized()
        assert gloo_threads() == []
        return 0

    ended = launch_fleet(tmp_path, 2, work)
    assert ended.codes == [0, 0], ended.errors


def noting_what_is_sent(work: Callable[[], int], path: Path) -> Callable[[], int]:
    """The same, by which process 0 writes down the bytes of bf16 that it asked to be summed."""

    def noted() -> int:
        distributed: Any = torch.distributed
        reduce, sent = distributed.all_reduce, []

        def counting(tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
            sent.append(tensor.nbytes if tensor.dtype == torch.bfloat16 else 0)
            return reduce(tensor, *args, **named)

        distributed.all_reduce = counting
        code = work()
        if os.environ["RANK"] == "0":
            path.write_text(str(sum(sent)))
        return code

    return noted


def test_one_process_sends_no_gradients(shop: Path, alone: RunConfig) -> None:
    run = run_of(shop, "reduce alone", train={"reduce": "bf16"})
    launch(run, "alone")
    assert losses(run) == losses(alone)


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_may_be_sent_in_bf16(shop: Path, tmp_path: Path, world: int) -> None:
    """Half the bytes, losses apart by rounding alone, and a run that goes on is one that was never stopped."""
    gentle: dict[str, Any] = {"optimizer": {"lr": 0.005}}
    steps = {"steps": 8, "micro_batch": 1}  # parts are added up in fp32, and sent once
    runs = {
        name: run_of(
            shop, f"reduce {world} {name}", **gentle, train=steps | ({} if name == "fp32" else {"reduce": "bf16"})
        )
        for name in ("fp32", "whole", "parted")
    }
    sent = {name: tmp_path / f"{name} sent" for name in runs}
    for name, run in runs.items():
        stop = "train.step:5=usr1@0" if name == "parted" else ""
        work = noting_what_is_sent(work_of(run), sent[name])
        ended = launch_fleet(tmp_path / name, world, work, fault=stop)
        assert ended.codes == [REQUEUE if stop else 0] * world, ended.errors
    assert launch_fleet(tmp_path / "parted", world, work_of(runs["parted"])).codes == [0] * world
    assert losses(runs["whole"]) == pytest.approx(losses(runs["fp32"]), rel=2**-8)
    assert losses(runs["whole"]) != losses(runs["fp32"])
    assert losses(runs["parted"]) == losses(runs["whole"])
    assert np.array_equal(scores(runs["parted"], shop), scores(runs["whole"], shop))
    trained = sum(weight.numel() for weight in load_model(str(shop / f"reduce {world} fp32" / "model")).parameters())
    times = 8 + (world > 2)  # once more where the first pass rounds otherwise
    assert int(sent["fp32"].read_text()) == 0
    assert int(sent["whole"].read_text()) == times * 2 * trained


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_an_update_left_out_leaves_no_trace_in_zero(shop: Path, engine: str) -> None:
    found = []
    for kind in ("alone", engine):
        run = run_of(shop, f"{engine} skip {kind}", train={"nonfinite": "skip", "steps": 8})
        assert launch(run, kind, fault="train.gradient:4=nan") == [0] * ENGINES[kind][1]
        found.append((losses(run), scores(run, shop)))
    assert found[1][0] == pytest.approx(found[0][0], rel=NEAR)
    assert np.allclose(found[1][1], found[0][1], atol=NEAR)


@pytest.mark.parametrize(
    ("engine", "changes", "environment", "message"),
    [
        ("zero2", {}, {"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "gradient_clipping is 0.5 by the launcher and 1.0"),
        ("zero2", {}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps is 4.0 by the"),
        ("zero2", {}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 needs a GPU"),
        ("zero2", {}, {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer to 'cpu' is not"),
        ("zero2", {"optimizer": {"name": "muon"}}, {}, "needs whole matrices"),
        ("zero2", {"tuning": {"mode": "probe"}}, {}, "trains too little to shard"),
        ("zero3", {"train": {"average": 0.9}}, {}, "train.average needs whole weights"),
        ("zero2", {"train": {"reduce": "bf16"}}, {}, "train.reduce 'bf16' is for DDP"),
        ("fsdp2", {"train": {"reduce": "bf16"}}, {}, "FSDP2 sends gradients in what a forward pass computes in"),
        ("zero4", {}, {}, "ZeRO stage 4 is not one of 1, 2 and 3"),
        ("ddp", {"train": {"precision": "bf16"}}, {}, "precision is fp32 by the launcher and bf16 by the run file"),
        ("ddp", {}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 needs a GPU"),
        ("fsdp2", {}, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 needs a GPU"),
        ("ddp", {}, {"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8"),
        ("fsdp2", {"train": {"precision": "bf16"}}, {}, "precision is fp32 by the launcher and bf16 by the run file"),
        (
            "zero1",
            {"train": {"precision": "fp32"}},
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "precision is bf16 by the launcher and fp32 by the run file",
        ),
        ("ddp", {}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, "accumulation_steps is 2.0 by the launcher and 1"),
    ],
)
def test_a_launcher_that_contradicts_the_run_file_is_refused_before_training(
    shop: Path, engine: str, changes: dict[str, Any], environment: dict[str, str], message: str
) -> None:
    if engine.startswith("zero") and not load_deepspeed():
        pytest.skip("DeepSpeed is not installed")
    run = run_of(shop, "refused", **changes)
    ended = launch_fleet(shop / "refused fleet", 1, work_of(run, **environment), engine=engine)
    assert ended.codes == [1]
    assert message in ended.errors[0]
    assert "UserError" in ended.errors[0]


def test_parts_that_the_launcher_counts_too_are_not_divided_twice(shop: Path) -> None:
    found = []
    for name, environment in (("parts", {}), ("counted parts", {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})):
        run = run_of(shop, name, train={"steps": 6, "micro_batch": 2})
        launch(run, "alone", **environment)
        found.append(losses(run))
    assert found[0] == found[1]


def test_one_process_alone_may_find_no_room_and_all_take_smaller_parts(shop: Path, tmp_path: Path) -> None:
    """The first step's own forward pass fails on one of two; the other must not wait for it."""
    whole, parted = (
        run_of(shop, "roomy", train={"steps": 4}),
        run_of(shop, "narrow", train={"steps": 4, "micro_batch": "auto"}),
    )
    launch(whole, "ddp")

    def work() -> int:
        if os.environ["RANK"] == "1":
            embed = AttributeReader.embed_images

            def small(reader: AttributeReader, pixels: torch.Tensor) -> torch.Tensor:
                if len(pixels) > 1 and reader.training:
                    raise torch.OutOfMemoryError("no room")
                return embed(reader, pixels)

            AttributeReader.embed_images = small  # type: ignore[method-assign]  # of this process
        return work_of(parted)()

    ended = launch_fleet(tmp_path / "fleet", 2, work)
    assert ended.codes == [0, 0], ended.errors
    assert losses(parted) == pytest.approx(losses(whole), rel=NEAR)


def test_logits_leave_fsdp2_as_they_were_computed_in_mixed_precision_too(shop: Path, tmp_path: Path) -> None:
    def work() -> int:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        trainer = Trainer(run_of(shop, "fsdp2 bf16"), make_accelerator())
        with trainer.accelerator.autocast():
            logits = logits_of(trainer.reader, trainer.inputs, trainer.index.rows("validation")[:8])
        portion = trainer.feed.portion(trainer.inputs, next(trainer.feed.planned(0, 1)))
        outputs = trainer.model(portion.batch.inputs)
        exact = outputs.logits[0].dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
        return 0 if exact else 1

    ended = launch_fleet(tmp_path / "fleet", 2, work, engine="fsdp2")
    assert ended.codes == [0, 0], ended.errors


def test_fp16_under_zero_is_refused_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="ZeRO trains in bf16 or fp32"):
        zero_plugin(gpu=True)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_says_its_precision(name: str) -> None:
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
    stated = yaml.safe_load(text)["mixed_precision"]
    assert stated in PRECISIONS
    assert f"in {PRECISIONS[stated]}" in text.partition("compute_environment")[0].replace("\n# ", " ")


def test_a_deepspeed_file_may_tune_the_engine_but_not_the_science(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    run = run_of(shop, "ds file", train={"steps": 2})
    tuned = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}, "train_batch_size": run.train.batch}
    for given, message in [
        (tuned, ""),
        (tuned | {"train_batch_size": 7}, "train_batch_size is 7 by the launcher"),
        (
            tuned | {"zero_optimization": {"stage": 2, "offload_param": {"device": "nvme"}}},
            "offload_param to 'nvme' is not supported",
        ),
        (tuned | {"gradient_clipping": 0.5}, "gradient_clipping is 0.5 by the launcher and 1.0 by the run file"),
        (tuned | {"bf16": {"enabled": True}}, "precision is bf16 by the DeepSpeed file and no by the launcher"),
    ]:
        file.write_text(json.dumps(given))
        if not load_deepspeed():
            pytest.skip("DeepSpeed is not installed")
        work = work_of(run, ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
        ended = launch_fleet(tmp_path / "fleet", 1, work, engine="zero2")
        assert ended.codes == [1 if message else 0], ended.errors
        assert message in ended.errors[0]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_photos_are_contrasted_with_captions_under_every_engine(shop: Path, engine: str) -> None:
    found = []
    for kind in ("alone", engine):
        run = run_of(shop, f"{engine} contrast {kind}", objective={"contrastive": 0.5}, train={"steps": 4})
        launch(run, kind)
        found.append(losses(run))
    assert found[1] == pytest.approx(found[0], rel=NEAR)
