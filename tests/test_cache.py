import fcntl
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from facetclip import cache as cache_module
from facetclip.cache import Cache, CacheSpec, Entry
from facetclip.errors import UserError

TEN = 10  # bytes in a file


def entry(number: int, fill=None) -> Entry:
    def filled(file):
        file.seek(0)
        file.truncate()
        file.write(content(number))

    return Entry(f"{number:064x}.tar", TEN, fill or filled)


def content(number: int) -> bytes:
    return f"{number:010d}".encode()


def read(cache: Cache, number: int) -> bytes:
    with cache.opened(entry(number)) as descriptor:
        return os.pread(descriptor, 100, 0)


def held(folder: Path) -> list[int]:
    return sorted(int(path.stem, 16) for path in folder.glob("*.tar"))


def test_a_file_is_brought_in_once_and_then_read_from_the_folder(tmp_path):
    cache, filled = Cache(CacheSpec(tmp_path)), []

    def fill(file):
        filled.append(1)
        file.write(content(7))

    for _ in range(3):
        with cache.opened(entry(7, fill)) as descriptor:
            assert os.pread(descriptor, 100, 0) == content(7)
    assert filled == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{7:064x}.tar", "room.lock"]


def test_the_limit_is_kept_and_what_was_read_longest_ago_goes_first(tmp_path):
    cache = Cache(CacheSpec(tmp_path, 3 * TEN))
    for number in (1, 2, 3):
        read(cache, number)
        time.sleep(0.01)
    read(cache, 1)
    time.sleep(0.01)
    read(cache, 4)
    assert held(tmp_path) == [1, 3, 4]
    read(cache, 5)
    assert held(tmp_path) == [1, 4, 5]


def test_what_is_in_use_is_never_evicted(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "PATIENCE", 0.1)
    cache = Cache(CacheSpec(tmp_path, 2 * TEN))
    with cache.opened(entry(1)) as descriptor, cache.opened(entry(2)):
        with pytest.raises(UserError, match="20 bytes are too few for what is read at a time"):
            read(cache, 3)
        cache.prefetch(entry(3))  # does not wait, and does not complain
        assert held(tmp_path) == [1, 2]
        assert os.pread(descriptor, 100, 0) == content(1)
    assert read(cache, 3) == content(3)


def test_who_needs_room_waits_for_readers_to_end(tmp_path):
    cache = Cache(CacheSpec(tmp_path, TEN))
    with cache.opened(entry(1)):
        other = threading.Thread(target=read, args=(cache, 2))
        other.start()
        time.sleep(0.1)
        assert held(tmp_path) == [1]
    other.join(5)
    assert held(tmp_path) == [2]


def test_a_file_above_the_limit_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"limit of 9 bytes is smaller than one file of 10; raise data\.cache_bytes"):
        read(Cache(CacheSpec(tmp_path, 9)), 1)


def test_nothing_but_its_own_files_is_ever_deleted(tmp_path):
    strange = [tmp_path / name for name in ("photo.jpg", "notes.part", "shard-000000.TAR", ".hidden")]
    for path in strange:
        path.write_bytes(b"!" * 100)
    cache = Cache(CacheSpec(tmp_path, TEN))
    for number in range(4):
        read(cache, number)
    assert held(tmp_path)[-1] == 3
    assert all(path.exists() for path in strange)


def test_what_an_unfinished_download_will_take_counts_too(tmp_path):
    cache = Cache(CacheSpec(tmp_path, 3 * TEN))
    for number in (1, 2):
        read(cache, number)
        time.sleep(0.01)

    def fill(file):
        file.write(b"0")
        assert held(tmp_path) == [1, 2], "one of three is free"
        read(cache, 3)
        assert held(tmp_path) == [2, 3], "ten bytes are promised although one has come"
        file.write(content(9)[1:])

    with cache.opened(entry(9, fill)):
        assert held(tmp_path) == [2, 3, 9]


def fork(work) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_of_many_processes_and_threads_one_brings_a_file_in_and_the_others_wait(tmp_path):
    log = tmp_path / "log"

    def fill(number, file):
        with log.open("a") as out:
            out.write(f"{number}\n")
        time.sleep(0.05)
        file.write(content(number))

    def work():
        cache = Cache(CacheSpec(tmp_path / "cache"))

        def read_all():
            for number in range(4):
                with cache.opened(entry(number, partial(fill, number))) as descriptor:
                    assert os.pread(descriptor, 100, 0) == content(number)

        threads = [threading.Thread(target=read_all) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [fork(work) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]


def test_processes_that_fight_over_little_room_all_get_every_file(tmp_path):
    def work(start):
        cache = Cache(CacheSpec(tmp_path, 3 * TEN))
        for step in range(60):
            number = (start + step) % 7
            assert read(cache, number) == content(number)

    children = [fork(partial(work, start)) for start in range(3)]
    assert [ended(child) for child in children] == [0] * 3
    assert len(held(tmp_path)) <= 3


def test_a_process_killed_in_a_download_leaves_its_bytes_and_no_lock(tmp_path):
    def die(file):
        file.write(b"0000")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(lambda: Cache(CacheSpec(tmp_path)).prefetch(entry(5, die)))) == -signal.SIGKILL

    def go_on(file):
        assert file.seek(0, 2) == 4
        file.write(content(5)[4:])

    cache = Cache(CacheSpec(tmp_path))
    with cache.opened(entry(5, go_on)) as descriptor:
        assert os.pread(descriptor, 100, 0) == content(5)
    assert held(tmp_path) == [5]
    assert not list(tmp_path.glob("*.part"))


def test_what_a_killed_process_left_is_evicted_as_any_other(tmp_path):
    (tmp_path / f"{5:064x}.tar.10.part").write_bytes(b"000")
    cache = Cache(CacheSpec(tmp_path, 2 * TEN))
    read(cache, 1)
    read(cache, 2)
    assert held(tmp_path) == [1, 2]
    assert not list(tmp_path.glob("*.part"))


def test_a_forked_child_does_not_keep_its_parents_locks(tmp_path):
    cache = Cache(CacheSpec(tmp_path, TEN))
    with cache.opened(entry(1)):
        child = fork(lambda: time.sleep(1))
    began = time.monotonic()
    assert read(cache, 2) == content(2)
    assert time.monotonic() - began < 0.9
    ended(child)


def test_a_failed_download_is_the_next_ones_to_go_on_with(tmp_path):
    cache = Cache(CacheSpec(tmp_path))

    def fail(file):
        file.write(b"000")
        raise UserError("the other side is gone")

    with pytest.raises(UserError, match="the other side is gone"), cache.opened(entry(1, fail)):
        pass
    assert (tmp_path / f"{1:064x}.tar.10.part").read_bytes() == b"000"
    assert read(cache, 1) == content(1)


def test_a_full_disk_is_named_with_path_and_bytes(tmp_path):
    def full(file):
        file.write(b"000")
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(UserError, match=r"\.part: could not be written: No space left on device"),
        Cache(CacheSpec(tmp_path)).opened(entry(1, full)),
    ):
        pass


def test_a_folder_that_cannot_be_a_cache_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be a cache .*data\.cache"):
        Cache(CacheSpec(tmp_path / "file" / "x"))

    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match="No locks available"):
        Cache(CacheSpec(tmp_path))
