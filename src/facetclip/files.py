"""A file is whole or absent; so is a folder."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from facetclip.errors import OwnMistake, UserError


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to fill beside `path`; at the end it is flushed to the disk and renamed: readers see all of it or nothing.

    OwnMistake naming the path and the bytes when the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except FileExistsError as error:  # of the parents
        raise UserError(f"{path}: could not be written: {error.filename} is a file, not a folder") from error
    except OSError as error:
        size = 0
        with suppress(OSError):
            size = beside.stat().st_size
        raise OwnMistake(f"{path}: could not be written: {error.strerror}, after {size:,} bytes") from error
    finally:
        with suppress(OSError):  # what says why is on its way
            beside.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """`content` as the file `path`, whole or not at all (see `writing`)."""
    with writing(path) as file:
        file.write(content)


def require_writable(folder: Path) -> None:
    """UserError or OwnMistake, as from `writing`, where no file can be written in `folder`, which need not be there:
    asked before long work."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise OwnMistake(f"{folder}: could not be written: {error.strerror}") from error
    if not there.is_dir():
        raise UserError(f"{folder}: could not be written: {there} is a file, not a folder")
    path = there / f".{secrets.token_hex(8)}.tmp"
    write_whole(path, b"")
    path.unlink()


def write_once(path: Path, content: bytes) -> bytes:
    """`content` as the file `path` unless it exists; what it holds, which of several processes is the first one's."""
    if not path.exists():
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        write_whole(beside, content)
        try:
            path.hardlink_to(beside)
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    return path.read_bytes()


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`, which it replaces when the block ends well; else nothing has changed."""
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # what a killed process left
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{target}: the folder cannot be made ({error.strerror})") from error
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    retired = target.with_name(f".{target.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    beside.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
