"""One holder at a time, renewed while it lives."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import facetclip.lease as lease_module
from facetclip.lease import Held, Lease, holder


@pytest.fixture
def lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lease]:
    monkeypatch.setattr(lease_module, "RENEWED_EVERY", 0.01)
    held = Lease(tmp_path / "lease.json", "is at work")
    yield held
    held.release()


def renewed(lease: Lease) -> float:
    return json.loads(lease.path.read_bytes())["renewed"]


def test_one_failed_renewal_does_not_end_them(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    really, failures = os.pwrite, []

    def full_once(descriptor: int, content: bytes, offset: int) -> int:
        if not failures:
            failures.append(time.time())
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", full_once)
    end = time.monotonic() + 10
    while not failures or renewed(lease) < failures[0]:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_whoever_looks_always_finds_the_holder(lease: Lease) -> None:
    end, seen = time.monotonic() + 0.5, set()
    while time.monotonic() < end:
        held = json.loads(lease.path.read_bytes())
        assert held["pid"] == os.getpid()
        seen.add(held["renewed"])
    assert len(seen) > 5


def test_a_release_leaves_nobody_named(tmp_path: Path) -> None:
    held = Lease(tmp_path / "lease.json", "is at work")
    held.release()
    assert held.path.read_bytes() == b""


def test_a_file_that_is_cleared_up_while_it_is_taken_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    path, made, cleared = tmp_path / "parts" / "it.json", lease_module._made, [True, True]

    def made_and_cleared(place: Path):
        file = made(place)
        if cleared:
            cleared.pop()
            shutil.rmtree(tmp_path / "parts")
        return file

    monkeypatch.setattr(lease_module, "_made", made_and_cleared)
    mine = Lease(path, "does")
    with pytest.raises(Held):
        Lease(path, "does")
    assert holder(path) is not None
    mine.release()


def test_a_folder_that_goes_between_two_looks_at_it_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    looks, really = [True], Path.mkdir

    def mkdir(folder: Path, *args, **kwargs) -> None:
        if looks:
            looks.pop()
            raise FileExistsError(folder)  # as pathlib does where it was there at first, and then was not
        really(folder, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    Lease(tmp_path / "parts" / "it.json", "does").release()
    assert not looks


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in ("parts", "parts/below", "link", "link/below"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            Lease(tmp_path / folder / "it.json", "does")


def test_taking_and_clearing_up_at_once_ends_in_no_error(tmp_path: Path) -> None:
    """A folder that comes and goes: every holder holds the file that is there."""
    folder, stop = tmp_path / "parts", threading.Event()

    def clear() -> None:
        while not stop.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        for _ in range(50):
            Lease(folder / "it.json", "does").release()
    finally:
        stop.set()
        clearing.join()
