"""One way to open and resize photos, as told on the standard input: the child of `decoders`.

`python -m benchmarks.data.decoding WHO TARGET FOLDER` in the peers' environment. `go`: once over the folder's photos to
uint8 [height, width, 3] with TARGET pixels on the shorter edge, answered by processor seconds. `close`: by the PSNR in
dB of each against Pillow's full decode and antialiased bicubic. `refused OTHER`: by how many files of each of that
folder's folders were refused.
"""

import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Decode = Callable[[bytes, int], np.ndarray]
SPARE = 2.0  # times the target that a scaled decode keeps, which 40 dB take


def fitted(width: int, height: int, target: int) -> tuple[int, int]:
    """The size with `target` pixels on the shorter edge."""
    scale = target / min(width, height)
    return round(width * scale), round(height * scale)


def pillow() -> Decode:
    """The whole picture, then Pillow's antialiased bicubic: what the others are compared with."""

    def decode(data: bytes, target: int) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(image.resize(fitted(*image.size, target), Image.Resampling.BICUBIC))

    return decode


def pillow_draft() -> Decode:
    """At a half, a quarter or an eighth of the size, as `draft` chooses; then the same."""

    def decode(data: bytes, target: int) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        shape = fitted(*image.size, target)
        image.draft("RGB", (round(SPARE * shape[0]), round(SPARE * shape[1])))
        return np.asarray(image.convert("RGB").resize(shape, Image.Resampling.BICUBIC))

    return decode


def simplejpeg() -> Decode:
    """At the least eighths of the size that leave SPARE; then Pillow's bicubic from the mean of whole pixels."""
    library = importlib.import_module("simplejpeg")

    def decode(data: bytes, target: int) -> np.ndarray:
        height, width, *_ = library.decode_jpeg_header(data)
        shape = fitted(width, height, target)
        least = [min(edge, round(SPARE * asked)) for edge, asked in ((width, shape[0]), (height, shape[1]))]
        pixels = library.decode_jpeg(data, "RGB", min_width=least[0], min_height=least[1], min_factor=1)
        return np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC, reducing_gap=1.2))

    return decode


def opencv() -> Decode:
    """The whole picture, then INTER_AREA."""
    library = importlib.import_module("cv2")
    library.setNumThreads(1)

    def decode(data: bytes, target: int) -> np.ndarray:
        pixels = library.imdecode(np.frombuffer(data, np.uint8), library.IMREAD_COLOR)
        if pixels is None:
            raise ValueError("imdecode gave nothing")
        shape = fitted(pixels.shape[1], pixels.shape[0], target)
        return library.cvtColor(library.resize(pixels, shape, interpolation=library.INTER_AREA), library.COLOR_BGR2RGB)

    return decode


def opencv_half() -> Decode:
    """At half the size where that leaves SPARE; then the same."""
    library, whole = importlib.import_module("cv2"), opencv()

    def decode(data: bytes, target: int) -> np.ndarray:
        width, height = Image.open(io.BytesIO(data)).size
        if min(width, height) < 2 * SPARE * target:
            return whole(data, target)
        pixels = library.imdecode(np.frombuffer(data, np.uint8), library.IMREAD_REDUCED_COLOR_2)
        if pixels is None:
            raise ValueError("imdecode gave nothing")
        shape = fitted(width, height, target)
        return library.cvtColor(library.resize(pixels, shape, interpolation=library.INTER_AREA), library.COLOR_BGR2RGB)

    return decode


def pyvips() -> Decode:
    """Its own thumbnail, which decodes at a part of the size; it heeds no `fail_on`."""
    library = importlib.import_module("pyvips")
    library.voperation.cache_set_max(0)  # or every round but the first would be a look-up

    def decode(data: bytes, target: int) -> np.ndarray:
        width, height = Image.open(io.BytesIO(data)).size
        shape = fitted(width, height, target)
        image = library.Image.thumbnail_buffer(data, shape[0], height=shape[1], size="force")
        return image.numpy()

    return decode


def pyvips_strict() -> Decode:
    """At half or a quarter of the size, refusing whatever libjpeg warns of, and then the same."""
    library = importlib.import_module("pyvips")
    library.voperation.cache_set_max(0)

    def decode(data: bytes, target: int) -> np.ndarray:
        width, height = Image.open(io.BytesIO(data)).size
        shape = fitted(width, height, target)
        shrink = max(factor for factor in (1, 2, 4) if factor == 1 or min(width, height) >= factor * SPARE * target)
        image = library.Image.new_from_buffer(data, f"[shrink={shrink}]", fail_on="warning", access="sequential")
        return image.thumbnail_image(shape[0], height=shape[1], size="force").numpy()

    return decode


def kornia() -> Decode:
    """The whole picture by its libjpeg-turbo, and its antialiased bicubic."""
    library = importlib.import_module("kornia_rs")

    def decode(data: bytes, target: int) -> np.ndarray:
        pixels = library.io.decode_image_jpegturbo(data, "rgb")
        width, height = fitted(pixels.shape[1], pixels.shape[0], target)
        return np.asarray(library.imgproc.resize(pixels, (height, width), "bicubic", antialias=True))

    return decode


def shards() -> Decode:
    """What `facetclip shard` does before it encodes."""
    images = importlib.import_module("facetclip.images")

    def decode(data: bytes, target: int) -> np.ndarray:
        shape = fitted(*Image.open(io.BytesIO(data)).size, target)
        image = images.read_rgb(data, at_least=target)
        return np.asarray(image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=images.GAP))

    return decode


def loader() -> Decode:
    """What facetclip's loader does: resized by torch."""
    images, torch = importlib.import_module("facetclip.images"), importlib.import_module("torch")
    squares = importlib.import_module("facetclip.squares")
    torch.set_num_threads(1)

    def decode(data: bytes, target: int) -> np.ndarray:
        width, height = fitted(*Image.open(io.BytesIO(data)).size, target)
        pixels = images.read_pixels(data, at_least=target)
        return squares._resized(pixels, height, width)

    return decode


WAYS: dict[str, Callable[[], Decode]] = {
    "pillow": pillow,
    "pillow draft": pillow_draft,
    "simplejpeg": simplejpeg,
    "opencv": opencv,
    "opencv half": opencv_half,
    "pyvips": pyvips,
    "pyvips strict": pyvips_strict,
    "kornia": kornia,
    "shards": shards,
    "loader": loader,
}


def closeness(decode: Decode, photos: list[bytes], target: int) -> list[float]:
    """PSNR in dB of each photo. ValueError where a picture has another size."""
    found = []
    for data in photos:
        right, given = pillow()(data, target).astype(float), decode(data, target).astype(float)
        if right.shape != given.shape:
            raise ValueError(f"expected {right.shape}, found {given.shape}")
        found.append(float(10 * np.log10(255**2 / max(1e-6, float(((right - given) ** 2).mean())))))
    return found


def refused(decode: Decode, folder: Path, target: int) -> dict[str, float]:
    """Of each kind of damage, the share of the files that are refused."""

    def is_refused(path: Path) -> bool:
        try:
            decode(path.read_bytes(), target)
        except Exception:
            return True
        return False

    kinds = {kind.name: [is_refused(path) for path in sorted(kind.iterdir())] for kind in sorted(folder.iterdir())}
    return {kind: sum(seen) / len(seen) for kind, seen in kinds.items()}


def main() -> None:
    """Answer line by line."""
    warnings.simplefilter("ignore")
    decode, target, folder = WAYS[sys.argv[1]](), int(sys.argv[2]), Path(sys.argv[3])
    photos = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    for line in sys.stdin:
        words = line.split(maxsplit=1)
        if words[0] == "go":
            start = time.process_time()
            for data in photos:
                decode(data, target)
            answer = time.process_time() - start
        elif words[0] == "close":
            answer = closeness(decode, photos, target)
        else:
            answer = refused(decode, Path(words[1].strip()), target)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
