"""What a step sends, by formula, is what the trainer asks for."""

import math
from pathlib import Path

import pytest
from benchmarks.communication import (
    ENGINES,
    NETWORKS,
    ZERO_BUCKET,
    Collective,
    Engine,
    Precision,
    markdown,
    memory,
    published,
    seconds,
    step,
    totals,
)
from benchmarks.counted import counted, differences

from facetclip.zero import BUCKET

SMALL, _ = MODELS = published()
H100 = NETWORKS["H100, NVLink 4, InfiniBand NDR"]


def check(folder: Path, engine: Engine, world: int, precision: Precision, *, contrastive: bool) -> None:
    both = counted(folder, engine, world, precision, contrastive=contrastive)
    assert differences(both["counted"], both["formula"], times=engine != "zero3") == []


@pytest.mark.xdist_group("engines")
def test_two_processes_ask_for_what_the_formula_says(tmp_path: Path) -> None:
    check(tmp_path, "ddp", 2, "fp32", contrastive=True)


@pytest.mark.nightly
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("contrastive", [False, True])
def test_every_engine_asks_for_what_the_formula_says(
    tmp_path: Path, engine: Engine, world: int, precision: Precision, contrastive: bool
) -> None:
    check(tmp_path, engine, world, precision, contrastive=contrastive)


def test_a_difference_is_named() -> None:
    real = {"all_reduce": {"times": 2, "bytes": 110}, "broadcast": {"times": 1, "bytes": 8}}
    found = differences(real, {"all_reduce": {"times": 1, "bytes": 100}}, times=True)
    assert found[0] == "all_reduce: 2 of them, 1 by the formula"
    assert found[1] == "all_reduce: 110 bytes, 100 by the formula"
    assert [text.split(":")[0] for text in found[2:]] == ["broadcast", "broadcast"]


def test_the_models_are_of_the_published_sizes() -> None:
    assert [round(model.parameters / 1e6) for model in MODELS] == [151, 428]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_process_sends_nothing_and_more_send_less_than_all_there_is(engine: Engine) -> None:
    assert step(SMALL, engine, 1, "fp32") == []
    few, many = (sum(each.sent(world) for each in step(SMALL, engine, world, "fp32")) for world in (2, 512))
    asked = sum(entry["bytes"] for entry in totals(step(SMALL, engine, 512, "fp32")).values())
    assert 0 < few < many < 2 * asked


def test_zero_sends_half_as_much_again_as_data_parallelism() -> None:
    ddp, zero = (sum(each.sent(8) for each in step(SMALL, engine, 8, "fp32")) for engine in ("ddp", "zero1"))
    assert zero / ddp == pytest.approx(1.5, rel=0.01)


def test_the_gathered_features_grow_with_the_batch_and_not_with_the_model() -> None:
    without, small, large = (
        sum(each.bytes for each in step(SMALL, "ddp", 8, "fp32", batch)) for batch in (0, 512, 1024)
    )
    assert large - without == 2 * (small - without) == 4 * 1024 * SMALL.features * 4


def test_modelled_seconds_are_latency_for_small_tensors_and_speed_for_large_ones() -> None:
    nothing, much = Collective("all_reduce", 1, 0, ""), Collective("all_reduce", 1, 1e12, "")
    assert seconds(nothing, 8, H100) == pytest.approx(2 * 7 * H100.inside.latency)
    assert seconds(nothing, 64, H100) == pytest.approx(2 * (7 * H100.inside.latency + 3 * H100.between.latency))
    assert seconds(much, 8, H100) == pytest.approx(2 * 7 / 8 * 1e12 / H100.inside.speed, rel=1e-3)
    assert math.isclose(seconds(nothing, 1, H100), 0)


def test_sharding_saves_memory_where_the_state_is_large() -> None:
    assert memory(SMALL, "fsdp2", 64) < memory(SMALL, "zero2", 64) < memory(SMALL, "ddp", 64)


def test_the_formula_and_the_engine_mean_the_same_buckets() -> None:
    assert ZERO_BUCKET == BUCKET


def test_the_page_shows_the_tables_of_the_script() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
    for model in MODELS:
        assert "\n".join(markdown(model)[:8]) in page
        assert "\n".join(markdown(model)[9:]) in page
