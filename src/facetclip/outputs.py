"""Where results are put: a folder of this machine, or one at any URL that fsspec writes to.

Both keep the same promise: a file is whole or absent. So whoever writes the file that names all others last may be
killed at any time.
"""

import re
from pathlib import Path
from typing import Protocol

from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.remote import Absent, RemoteFolder, is_url

FILE = "file://"


class Output(Protocol):
    """A folder to be written to."""

    def names(self) -> list[str]:
        """The files in it, sorted; none where there is no folder."""
        ...

    def spot(self, name: str) -> str:
        """Where a file lies, for a message."""
        ...

    def read(self, name: str, last: int | None = None) -> bytes:
        """A file's bytes, or the `last` of them. Absent, a UserError, where there is no such file."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """`content` as a file, whole or not at all; one of that name is replaced. UserError where it cannot be."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        """The files in it, sorted; none where there is no folder."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def spot(self, name: str) -> str:
        """Where a file lies, for a message."""
        return str(self.folder / name)

    def read(self, name: str, last: int | None = None) -> bytes:
        """A file's bytes, or the `last` of them. Absent where there is no such file."""
        path = self.folder / name
        try:
            with path.open("rb") as file:
                if last is not None:
                    file.seek(-min(last, path.stat().st_size), 2)
                return file.read()
        except FileNotFoundError as error:
            raise Absent(f"{path}: not found") from error
        except OSError as error:
            raise UserError(f"{path}: could not be read: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> None:
        """`content` as a file, whole or not at all; one of that name is replaced."""
        write_whole(self.folder / name, content)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / name).exists()

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.folder / name).unlink(missing_ok=True)


def open_output(place: Path | str) -> Output:
    """The folder at `place`, a path or a URL; it need not exist. UserError where a URL cannot be written to.

    >>> str(open_output("file:///tmp/scores")), str(open_output("memory://scores"))
    ('/tmp/scores', 'memory://scores')
    """
    folder = written_before(place)
    if isinstance(folder, RemoteFolder):
        folder.require_writable()
    return folder


def written_before(place: Path | str) -> Output:
    """The folder at `place`, a path or a URL, of which nothing but reading is asked."""
    text = str(place)
    if text.startswith(FILE):
        return LocalFolder(Path(text.removeprefix(FILE)))
    return RemoteFolder(text) if is_url(place) else LocalFolder(Path(place))


def clear(output: Output, names: str) -> None:
    """Delete what killed processes left of files whose whole name the regular expression `names` matches."""
    left = re.compile(rf"\.?({names})\.[0-9a-f]{{8}}\.tmp")
    for name in filter(left.fullmatch, output.names()):
        output.remove(name)


def parted(place: Path | str) -> tuple[Path | str, str]:
    """The folder of a file at `place` and its name.

    >>> parted("s3://shop/out/filled.csv"), parted("filled.csv")
    (('s3://shop/out', 'filled.csv'), (PosixPath('.'), 'filled.csv'))
    """
    if is_url(place) and not str(place).startswith(FILE):
        folder, _, name = str(place).rpartition("/")
        return folder, name
    path = Path(str(place).removeprefix(FILE))
    return path.parent, path.name
