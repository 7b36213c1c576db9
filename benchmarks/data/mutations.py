"""Damaged files: seeded mutations of real ones, each a pure function of (sources, seed, number)."""

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

HEADER = 700  # bytes at the start in which a header edit falls


def sources(photos: Sequence[Path], edge: int = 400) -> list[tuple[str, bytes]]:
    """(suffix, bytes) of the photos, by turns in each coding that shops use, at most `edge` pixels across."""
    coded = []
    for number, path in enumerate(photos):
        image = Image.open(path).convert("RGB")
        image.thumbnail((edge, edge))
        for suffix, kind, mode, options in (
            ("jpg", "JPEG", "RGB", {"quality": 85}),
            ("jpg", "JPEG", "RGB", {"quality": 90, "progressive": True}),
            ("jpg", "JPEG", "RGB", {"quality": 90, "subsampling": 0, "restart_marker_rows": 2}),
            ("jpg", "JPEG", "CMYK" if number % 2 else "L", {"quality": 90}),
            ("png", "PNG", "RGBA" if number % 2 else "RGB", {"compress_level": 1}),
            ("webp", "WEBP", "RGB", {"quality": 80, "lossless": number % 3 == 0, "method": 0}),
        ):
            out = io.BytesIO()
            image.convert(mode).save(out, kind, **options)
            coded.append((suffix, out.getvalue()))
    return coded


def _flipped(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 1, 4, 16))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _lost(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    del data[start : start + draw.choice((1, 2, 100, 4096))]


def _doubled(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start:start] = data[start : start + draw.choice((1, 64, 4096))]


def _garbage(data: bytearray, draw: random.Random) -> None:
    start, length = draw.randrange(len(data)), draw.choice((2, 64, 512))
    data[start : start + length] = draw.randbytes(length) if draw.random() < 0.6 else bytes(length)


def _header(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 3))):
        data[draw.randrange(min(HEADER, len(data)))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


KINDS: dict[str, Callable[[bytearray, random.Random], None]] = {
    "bits flipped": _flipped,
    "cut": _cut,
    "a piece lost": _lost,
    "a piece doubled": _doubled,
    "garbage": _garbage,
    "header edited": _header,
}


def mutated(files: Sequence[tuple[str, bytes]], seed: int, number: int) -> tuple[int, str, bytes]:
    """(which file, kind of damage, damaged bytes); one in eight is the end of another file behind the start of it."""
    draw = random.Random(f"{seed} {number}")
    which = draw.randrange(len(files))
    data = bytearray(files[which][1])
    if draw.random() < 0.125:
        other = files[draw.randrange(len(files))][1]
        data[draw.randrange(len(data)) :] = other[draw.randrange(len(other)) :]
        return which, "spliced", bytes(data)
    kind = draw.choice(list(KINDS))
    KINDS[kind](data, draw)
    return which, kind, bytes(data)
