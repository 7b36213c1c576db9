import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shop import make_shards

from facetclip.batches import PixelReader, ahead, decoding_threads, uniforms


def test_uniforms_are_even_and_depend_on_the_place_alone() -> None:
    draws = uniforms(3, np.arange(20_000), 5)
    assert draws.dtype == np.float32
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.03
    assert np.array_equal(draws[[7, 3]], uniforms(3, np.array([7, 3]), 5))
    assert not np.array_equal(draws[:10], uniforms(4, np.arange(10), 5))


def test_cached_photos_are_the_photos(tmp_path: Path) -> None:
    index = make_shards(tmp_path, 20)
    rows = np.array([4, 2, 18, 4, 7])
    plain = PixelReader(index, 24, "pad").pixels(rows)
    cached = PixelReader(index, 24, "pad", cached=np.arange(0, 20, 2))
    assert torch.equal(cached.pixels(rows), plain)
    assert torch.equal(cached.pixels(rows), plain)
    batch = cached.batch(rows)
    assert np.array_equal(batch.labels.numpy(), index.label_matrix(rows))


def test_photos_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    index = make_shards(tmp_path, 40)
    rows = np.arange(40)[::-1]
    one, many = (PixelReader(index, 24, "crop", threads=threads).pixels(rows) for threads in (1, 5))
    assert torch.equal(one, many)


def test_a_process_decodes_by_its_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(48)), raising=False)
    shares = []
    for processes in (1, 4, 48):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        shares.append(decoding_threads())
    assert shares == [16, 12, 2]


def test_portions_come_in_order_and_are_prepared_ahead() -> None:
    prepared: list[int] = []

    def prepare(number: int) -> int:
        prepared.append(number)
        return number * 2

    stream = ahead(prepare, range(9), depth=3)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(prepared) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prepared[:4] == [0, 1, 2, 3]
    assert list(stream) == [2, 4, 6, 8, 10, 12, 14, 16]


def test_a_failure_while_preparing_reaches_the_caller_and_leaves_no_thread() -> None:
    def prepare(number: int) -> int:
        if number == 2:
            raise ValueError("broken photo")
        return number

    with pytest.raises(ValueError, match="broken photo"):
        list(ahead(prepare, range(5)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
