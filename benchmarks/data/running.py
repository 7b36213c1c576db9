"""A contender in a process and an environment of its own, which goes over a tar of photos whenever it is told to.

`python -m benchmarks.data.running WHO TAR` answers every line on its standard input with the processor seconds of one
pass: from the tar to float batches [32, 3, 224, 224] on the CPU.
"""

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.peers import torchvision_operators

SIZE, BATCH = 224, 32
Pass = Callable[[], int]  # one pass over the tar: how many photos came


def ours(tar: Path) -> Pass:
    """What the trainer does: photos by offset, crops made square, augmented and normalised as one batch."""
    names = ("batches", "images", "squares", "augmentation", "config")
    batches, images, squares, augmentation, config = (importlib.import_module(f"facetclip.{name}") for name in names)
    np, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    tarfile = importlib.import_module("tarfile")
    with tarfile.open(tar) as members:
        places = [(member.offset_data, member.size) for member in members]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[None, :, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[None, :, None, None]
    spec = config.Augmentation()

    def once() -> int:
        done = 0
        with tar.open("rb") as file:
            for start in range(0, len(places), BATCH):
                photos = [os.pread(file.fileno(), length, offset) for offset, length in places[start : start + BATCH]]
                pixels = np.empty((len(photos), SIZE, SIZE, 3), dtype=np.uint8)
                draws = batches.uniforms(0, np.arange(start, start + len(photos)), augmentation.DRAWS)
                for at, (photo, crop) in enumerate(zip(photos, augmentation.crops(draws, spec).tolist(), strict=True)):
                    decoded = images.read_pixels(photo, at_least=SIZE)
                    pixels[at] = squares.cropped_square(decoded, SIZE, "crop", crop).transpose(1, 2, 0)
                planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
                done += len(augmentation.augment(planes, torch.from_numpy(draws), spec, mean, deviation))
        return done

    return once


def _webdataset(tar: Path, transform: Callable[[Any], Any]) -> Pass:
    webdataset = importlib.import_module("webdataset")

    def once() -> int:
        data = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False).decode("pilrgb")
        data = data.rename(image="jpg").map_dict(image=transform).to_tuple("image").batched(BATCH, partial=True)
        return sum(len(batch[0]) for batch in data)

    return once


def open_clip(tar: Path) -> Pass:
    """The pipeline of `open_clip_train.data`, with its own training transform."""
    library = torchvision_operators()
    transform = importlib.import_module("open_clip.transform").image_transform(SIZE, is_train=True)
    once = _webdataset(tar, transform)
    return lambda keep=library: once()


def webdataset(tar: Path) -> Pass:
    """Pillow's resize to the shorter edge, the centre, and normalising by numpy."""
    np, torch, pil = (importlib.import_module(name) for name in ("numpy", "torch", "PIL.Image"))
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

    def transform(image: Any) -> Any:
        scale = SIZE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), pil.Resampling.BICUBIC)
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        levels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float32) / 255
        return torch.from_numpy(((levels - mean) / deviation).transpose(2, 0, 1).copy())

    return _webdataset(tar, transform)


def datasets(tar: Path) -> Pass:
    """`datasets`' own WebDataset builder, streamed, and transformers' image processor, in batches."""
    library = torchvision_operators()
    load = importlib.import_module("datasets").load_dataset
    processor = importlib.import_module("transformers").CLIPImageProcessorPil()

    def rows() -> Iterator[dict[str, Any]]:
        yield from load("webdataset", data_files=str(tar), split="train", streaming=True).iter(batch_size=BATCH)

    def once(keep: object = library) -> int:
        return sum(
            len(processor([image.convert("RGB") for image in batch["jpg"]], return_tensors="pt")["pixel_values"])
            for batch in rows()
        )

    return once


PASSES = {"ours": ours, "open_clip": open_clip, "webdataset": webdataset, "datasets": datasets}


def main() -> None:
    """Answer line by line."""
    importlib.import_module("torch").set_num_threads(1)
    once = PASSES[sys.argv[1]](Path(sys.argv[2]))
    expected = None
    for _ in sys.stdin:
        start = time.process_time()
        done = once()
        took = time.process_time() - start
        if expected not in (None, done) or not done:
            raise SystemExit(f"{sys.argv[1]}: {done} photos came, {expected} before")
        expected = done
        print(took, flush=True)


if __name__ == "__main__":
    main()
