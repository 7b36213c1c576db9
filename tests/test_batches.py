import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_shop import SCHEMA, make_shards

from facetclip.augmentation import DRAWS, crops
from facetclip.batches import Batch, PixelReader, ahead, decoding_threads, uniforms
from facetclip.config import Augmentation
from facetclip.feed import Portion
from facetclip.index import open_index, write_index


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
    kept = PixelReader(index, 24, "pad", often=20)
    assert torch.equal(kept.pixels(rows), plain)
    assert torch.equal(kept.pixels(rows), plain)
    batch = kept.batch(rows)
    assert np.array_equal(batch.labels.numpy(), index.label_matrix(rows))


def test_crops_of_a_kept_photo_are_those_of_one_that_is_read_anew(tmp_path: Path) -> None:
    index, rows = make_shards(tmp_path, 20), np.arange(20)
    kept, some = PixelReader(index, 24, "pad", often=20), crops(uniforms(1, rows, DRAWS), Augmentation())
    first = kept.batch(rows, some).inputs
    assert not torch.equal(first, kept.batch(rows).inputs)
    assert torch.equal(kept.batch(rows, some).inputs, first)
    assert torch.equal(PixelReader(index, 24, "pad").batch(rows, some).inputs, first)


def test_no_more_photos_are_kept_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, rows = make_shards(tmp_path, 20), np.arange(20)
    whole = sum(PixelReader(index, 24, "pad").photo(row).nbytes for row in range(20))
    monkeypatch.setattr("facetclip.batches.CACHE_BYTES", whole // 2)
    for often, held in ((0, False), (whole, False), (4, True)):  # none wanted, far too many, as many as fit
        reader = PixelReader(index, 24, "pad", often=often)
        reader.pixels(rows)
        anew = list(reader.coming([rows], lambda portion: portion))
        assert len(anew) == 1
        assert (0 < len(reader._unknown(rows)) < 20) == held
        assert sum(photo.nbytes for photo in reader._kept.values()) <= whole // 2


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


def test_what_lies_on_a_device_already_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(tensor.device.type) or tensor)
    there = Batch(np.arange(2), torch.empty(2, 3, 8, 8, device="meta"), torch.zeros(2, 1))
    portion = Portion(step=0, batch=there, draws=torch.zeros(2, DRAWS), count=2.0)
    assert portion.pinned().batch.inputs is there.inputs
    assert asked == ["cpu", "cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
def test_photos_for_a_gpu_lie_where_it_can_fetch_them(tmp_path: Path) -> None:
    batch = PixelReader(make_shards(tmp_path, 6), 24, "pad").batch(np.arange(6))
    plain = Portion(step=0, batch=batch, draws=torch.zeros(6, DRAWS), count=6.0)
    pinned = plain.pinned().batch.inputs
    assert pinned.is_pinned()
    assert pinned.stride() == batch.inputs.stride()
    assert torch.equal(pinned.cuda(non_blocking=True).cpu(), batch.inputs)


HELD = """
import resource
import sys
from pathlib import Path

import numpy as np

from facetclip.batches import Batch, PixelReader, ahead
from facetclip.index import open_index

reader = PixelReader(open_index(sys.argv[1]), 128, "pad", threads=3)
for epoch in range(120):
    order = np.random.default_rng(epoch).permutation(60)
    batches = ahead(reader.batch, [order[start : start + 16] for start in range(0, 60, 16)])
    assert sum(len(batch.rows) for batch in batches) == 60
    print(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="looks for its memory in /proc")
def test_memory_does_not_grow_from_epoch_to_epoch(tmp_path: Path) -> None:
    make_shards(tmp_path, 60)
    # In a process of its own: what tests before this one left in the allocator's hands is no matter of the reader's.
    told = subprocess.run([sys.executable, "-c", HELD, str(tmp_path)], capture_output=True, text=True, check=True)
    held = [int(line) for line in told.stdout.split()]
    an_epoch = 60 * 128 * 128 * 3
    # The first ones fill the memory that threads keep for themselves, and once in a while a thread takes some more for
    # good; of what eighty epochs read not a twentieth stays.
    assert min(held[-10:]) - min(held[30:40]) < 80 * an_epoch / 20


def test_a_row_of_the_catalog_costs_tens_of_bytes_however_many_there_are(tmp_path: Path) -> None:
    small = make_shards(tmp_path / "shards", 20)
    table = pq.read_table(tmp_path / "shards" / "index.parquet")
    held = {}
    for rows in (1_000, 100_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        shutil.copy(tmp_path / "shards" / small.shards[0].name, folder)
        write_index(folder, table.take(np.arange(rows) % 20), SCHEMA, small.shards, {})
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        index = open_index(folder)
        reader = PixelReader(index, 32, "pad")
        shapes = [batch.inputs.shape for batch in ahead(reader.batch, np.arange(rows)[-640:].reshape(-1, 64))]
        assert shapes == [(64, 3, 32, 32)] * 10
        held[rows] = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
        tracemalloc.stop()
    assert (held[100_000] - held[1_000]) / 99_000 < 60


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
