"""Shards from elsewhere in the order of a plan: each read once, brought before it is read, in little room."""

import json
import multiprocessing
import os
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import torch
from flaky_server import serving
from fleet import launch_fleet
from small_shop import make_reader, make_shards
from test_trainer import make_run

from facetclip import remote as remote_module
from facetclip.batches import PixelReader, ahead
from facetclip.cache import CacheSpec
from facetclip.errors import UserError
from facetclip.feed import Feed, check_run
from facetclip.index import ShardIndex, open_index
from facetclip.launch import make_accelerator
from facetclip.runs import start_tracker
from facetclip.tracking import Tracker
from facetclip.trainer import Trainer

ITEMS, SHARDS = 240, 12


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shop"), ITEMS, shards=SHARDS).folder


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote_module, "CHUNK", 4000)


def limit_of(index: ShardIndex, shards: float) -> int:
    return int(index.store.index.stat().st_size + shards * max(shard.bytes for shard in index.shards))


def feed_of(shop: Path, index: ShardIndex, rank: int = 0, world: int = 1, **sampling: object) -> Feed:
    run = make_run(shop.parent, train={"steps": 5, "batch": 8}, sampling={"strategy": "natural", **sampling})
    return Feed(run, index, make_reader(), (rank, world))


def test_portions_come_as_they_are_and_their_shards_before_they_are_read(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("FACETCLIP_CACHE", str(tmp_path))
    with serving(shop) as server:
        index = open_index(server.url)
        portions = [np.flatnonzero(index.shard == shard) for shard in range(SHARDS)]
        stream = index.coming(portions, lambda rows: rows)
        assert (next(stream) == portions[0]).all()
        until = time.monotonic() + 10
        while len(list(tmp_path.glob("*.tar"))) < SHARDS and time.monotonic() < until:
            time.sleep(0.01)
        before = len(server.asked)
        for rows in portions[1:]:
            assert (next(stream) == rows).all()
            index.read(int(rows[0]))
        assert len(server.asked) == before
        assert list(stream) == []


def test_no_more_is_brought_than_the_cache_holds_and_nothing_twice(shop, tmp_path):
    with serving(shop) as server:
        limit = limit_of(open_index(server.url, CacheSpec(tmp_path / "first")), 5.2)
        index = open_index(server.url, CacheSpec(tmp_path / "second", limit))
        server.asked.clear()
        portions = [np.flatnonzero(index.shard == shard) for shard in range(SHARDS)]
        for rows in index.coming(portions, lambda rows: rows):
            for row in rows:
                index.read(int(row))
            assert sum(path.stat().st_size for path in (tmp_path / "second").glob("*.tar")) <= limit
        starts = [name for name, first in server.asked if first == 0]
        assert sorted(starts) == sorted(shard.name for shard in index.shards)


def test_who_stops_reading_stops_the_downloads(shop, tmp_path):
    with serving(shop) as server:
        index = open_index(server.url, CacheSpec(tmp_path))
        portions = [np.flatnonzero(index.shard == shard) for shard in range(SHARDS)]
        stream = index.coming(portions, lambda rows: rows)
        next(stream)
        stream.close()  # type: ignore[attr-defined]  # a generator
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_a_shard_that_cannot_be_had_is_told_by_whoever_reads_it(shop, tmp_path):
    with serving(shop) as server:
        index = open_index(server.url, CacheSpec(tmp_path))
        server.lies = {"shard-000003.tar"}
        portions = [np.flatnonzero(index.shard == shard) for shard in (2, 3)]
        stream = index.coming(portions, lambda rows: rows)
        index.read(int(next(stream)[0]))
        with pytest.raises(UserError, match=r"shard-000003\.tar.*expected sha256"):
            index.read(int(next(stream)[0]))


def test_a_cache_too_small_for_one_shard_is_refused_with_the_bytes_that_it_takes(shop, tmp_path):
    url = f"file://{shop}"
    limit = limit_of(open_index(url, CacheSpec(tmp_path / "first")), 1)
    for window in (None, 1):
        run = make_run(shop.parent, sampling={"window": window})
        with pytest.raises(UserError, match=rf"room for 0 of 12 shards: raise it .* to at least {limit:,}") as refused:
            check_run(run, open_index(url, CacheSpec(tmp_path / "second", limit - 1)), 1)
        assert "window" not in str(refused.value)
    index = open_index(url, CacheSpec(tmp_path / "second", limit))
    check_run(make_run(shop.parent, sampling={"window": 1}), index, 1)
    assert index.read(0)


def test_a_cache_too_small_for_the_plan_is_refused_with_the_window_that_fits(shop, tmp_path):
    url = f"file://{shop}"
    limit = limit_of(open_index(url, CacheSpec(tmp_path / "first")), 6.5)
    index = open_index(url, CacheSpec(tmp_path / "second", limit))
    for window in (None, 7):
        with pytest.raises(UserError, match=r"room for 6 of 12 shards .* set sampling.window to at most 3"):
            check_run(make_run(shop.parent, sampling={"window": window}), index, 1)
    check_run(make_run(shop.parent, sampling={"window": 6}), index, 1)
    check_run(make_run(shop.parent), open_index(url, CacheSpec(tmp_path / "third")), 1)


def read_share(folder: Path, url: str, limit: int, window: int | None, met: Barrier) -> None:
    """One rank of two reads its share of an epoch as the trainer does, with two threads and a gradient to share after
    each step, and says what it read."""
    rank = int(os.environ["RANK"])
    index = open_index(url, CacheSpec(folder / "cache", limit))
    read: list[int] = []
    lock = threading.Lock()
    plain = ShardIndex.read

    def noted(self: ShardIndex, row: int) -> bytes:
        content = plain(self, row)
        with lock:
            read.append(int(row))
        return content

    ShardIndex.read = noted  # type: ignore[method-assign]  # in this forked process alone
    feed = feed_of(folder, index, rank, 2, window=window)
    pixels = PixelReader(index, 32, "pad", threads=2)
    planned = pixels.coming(feed.planned(0, feed.steps_per_epoch), feed.rows_of)
    steps = []
    for portion in ahead(lambda one: feed.portion(pixels, one), planned):
        steps.append(portion.batch.rows.tolist())
        met.wait(60)
    (folder / f"read {rank}.json").write_text(json.dumps({"read": sorted(read), "steps": steps}))


@pytest.mark.parametrize("window", [None, 3])
def test_an_epoch_over_cut_connections_reads_exactly_the_plan(shop, tmp_path, window):
    """Two processes with two threads each, one cache, the connection cut three times, and with a window a cache that
    holds less than the half."""
    with serving(shop) as server:
        index = open_index(server.url, CacheSpec(tmp_path / "first"))
        limit = limit_of(index, 40 if window is None else 2 * window + 1)
        server.cuts = 3
        met = multiprocessing.get_context("fork").Barrier(2)
        ended = launch_fleet(tmp_path, 2, lambda: read_share(tmp_path, server.url, limit, window, met))
        assert ended.codes == [0, 0], ended.errors
        assert server.cuts == 0
        told = [json.loads((tmp_path / f"read {rank}.json").read_text()) for rank in range(2)]
        feed = feed_of(tmp_path, index, window=window)
        plan = [rows.tolist() for _, rows in feed.planned(0, feed.steps_per_epoch)]
        assert [one + two for one, two in zip(told[0]["steps"], told[1]["steps"], strict=True)] == plan
        assert sorted(told[0]["read"] + told[1]["read"]) == sorted(row for batch in plan for row in batch)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= limit
        fetched = [name for name, first in server.asked if name.endswith(".tar") and first == 0]
        assert len(fetched) <= SHARDS + 3, "the shards once, and what was cut before its first chunk again"


def test_training_from_a_url_in_little_room_gives_the_weights_of_training_from_the_folder(shop, tmp_path):
    url = f"file://{shop}"
    limit = limit_of(open_index(url, CacheSpec(tmp_path / "first")), 5)
    weights = []
    for place, name in ((str(shop), "local"), (url, "remote")):
        run = make_run(
            tmp_path,
            data={"shards": place, "cache": str(tmp_path / "cache"), "cache_bytes": limit},
            train={"steps": 8, "batch": 16},
            sampling={"window": 4},
            output={"folder": str(tmp_path / name)},
        )
        trainer = Trainer(run, make_accelerator())
        trainer.train()
        weights.append({key: value.clone() for key, value in trainer.reader.state_dict().items()})
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= limit


def test_the_address_of_the_shards_is_filed_without_its_secrets(shop, tmp_path, monkeypatch):
    run = make_run(tmp_path, data={"shards": "https://me:canary1@shop.example/shards?token=canary2"})
    filed: dict[str, object] = {}
    monkeypatch.setattr(Tracker, "start", lambda folder, **facts: filed.update(facts))
    start_tracker(run, tmp_path / "run")
    told = (tmp_path / "run" / "run.json").read_text() + str(filed)
    assert "shop.example/shards?token=***" in told
    assert "canary" not in told
