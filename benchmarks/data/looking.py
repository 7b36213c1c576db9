"""Looks at files one by one, as told on the standard input, and says what each look took: the child of `verdicts`.

`python -m benchmarks.data.looking WHO`, in the environment of WHO. A line `DAMAGED<tab>WHOLE` is answered in JSON:
seconds, the megabytes at most, what was said (empty where a picture came out), and how close the picture is to
the whole file's, as PSNR in dB.
"""

import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.data.peers import torchvision_operators
from PIL import Image

Look = Callable[[bytes, str], Any]


def pillow() -> Look:
    """Pillow's full load of what `facetclip.images` opens too: what must never pass elsewhere where it fails here."""
    formats = ("JPEG", "PNG", "WEBP", "AVIF", "GIF")

    def look(data: bytes, _: str) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=formats)
        image.load()
        return image.convert("RGB")

    return look


def ours() -> Look:
    """What check, shard, train and serve do: all of them must say the same."""
    images = importlib.import_module("facetclip.images")

    def said(use: Callable[[], Any]) -> str:
        try:
            use()
        except images.BadImage as bad:
            return bad.code
        return ""

    def look(data: bytes, _: str) -> Image.Image:
        bad = images.verdict(data, decode=True)
        code = bad.code if bad else ""
        for use in (lambda: images.read_rgb(data, at_least=64), lambda: images.shrink(data, 64)):
            if (found := said(use)) != code:
                raise AssertionError(f"the verdict is {code!r} here and {found!r} there")
        if bad:
            raise bad
        return images.read_rgb(data)

    return look


def webdataset() -> Look:
    """webdataset's own image decoder, as `.decode("pilrgb")` runs it."""
    decode = importlib.import_module("webdataset.autodecode").imagehandler("pilrgb")
    return lambda data, suffix: decode(f"0.{suffix}", data)


def open_clip() -> Look:
    """open_clip's loader: webdataset's decoder, then its own transform."""
    library = torchvision_operators()
    transform = importlib.import_module("open_clip.transform").image_transform(224, is_train=False)
    decode = webdataset()

    def look(data: bytes, suffix: str) -> Image.Image:
        image = decode(data, suffix)
        transform(image)
        return image

    return lambda data, suffix, keep=library: look(data, suffix)


LOOKS = {"pillow": pillow, "ours": ours, "webdataset": webdataset, "open_clip": open_clip}


@lru_cache(512)
def _small(path: str) -> np.ndarray:
    return _levels(Image.open(path))


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), dtype=float)


def closeness(image: Image.Image, whole: str) -> float:
    """PSNR in dB of two pictures at 64 x 64."""
    return float(10 * np.log10(255**2 / max(1e-6, float(((_levels(image) - _small(whole)) ** 2).mean()))))


def peak_megabytes() -> int:
    """The most memory since it was last asked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) >> 10


def main() -> None:
    """Answer line by line."""
    warnings.simplefilter("ignore")
    look = LOOKS[sys.argv[1]]()
    peak_megabytes()
    for line in sys.stdin:
        damaged, whole = line.rstrip("\n").split("\t")
        data, said, image = Path(damaged).read_bytes(), "", None
        start = time.perf_counter()
        try:
            image = look(data, Path(whole).suffix[1:])
        except Exception as error:
            said = getattr(error, "code", None) or type(error).__name__
            said = f"{said}: {error}"[:200]
        took, peak = time.perf_counter() - start, peak_megabytes()
        near = None if image is None else round(closeness(image, whole), 1)
        print(json.dumps({"seconds": round(took, 4), "megabytes": peak, "said": said, "near": near}), flush=True)


if __name__ == "__main__":
    main()
