"""A training loader in a process of its own, which goes through an epoch whenever it is told to.

`python -m benchmarks.data.loaders WHO FOLDER WORKERS` answers every line on its standard input with a line of JSON:
photos, processor seconds of this process and all that it started, and seconds on the clock. An epoch gives normalised
float batches [64, 3, 224, 224] on the processor, in random order. Started with `prepare` in place of WHO it writes the
photos of FOLDER/shards in the format of WORKERS instead. FOLDER: shards, mds, arrow.
"""

import importlib
import io
import json
import os
import sys
import tarfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.peers import torchvision_operators

SIZE, BATCH = 224, 64
SCALE = (0.9, 1.0)  # of the area that a crop keeps: open_clip's default
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Epoch = Callable[[], Iterable[Any]]  # batches, each a tensor of photos or a tuple that begins with it


def ours(folder: Path, workers: int) -> Epoch:
    """What the trainer does: photos by offset, crops made square by threads, read ahead, augmented as one batch."""
    batches, index = (importlib.import_module(f"facetclip.{name}") for name in ("batches", "index"))
    augmentation, config = (importlib.import_module(f"facetclip.{name}") for name in ("augmentation", "config"))
    np, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    shards, spec = index.open_index(folder / "shards"), config.Augmentation()
    reader = batches.PixelReader(shards, SIZE, "crop", threads=workers)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    random = np.random.default_rng(0)

    def prepared(rows: Any) -> tuple[Any, Any]:
        draws = batches.uniforms(0, rows, augmentation.DRAWS)
        return reader.batch(rows, augmentation.crops(draws, spec)), torch.from_numpy(draws)

    def epoch() -> Iterator[Any]:
        order = random.permutation(len(shards))
        portions = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        for batch, draws in batches.ahead(prepared, portions):
            yield augmentation.augment(batch.inputs, draws, spec, mean, std)

    return epoch


def open_clip(folder: Path, workers: int) -> Epoch:
    """`open_clip_train`'s own loader and training transform; captions are not tokenised.

    webdataset 1.0 ends each tar with a record without a file, at which that loader (3.3) stops: here it is left out.
    """
    torch, transform = importlib.import_module("torch"), importlib.import_module("open_clip.transform")
    data: Any = importlib.import_module("open_clip_train.data")
    grouped = data.group_by_keys_nothrow

    def of_files(records: Iterable[dict[str, Any]], **options: Any) -> Iterator[Any]:
        return grouped((record for record in records if "fname" in record), **options)

    data.group_by_keys_nothrow = of_files
    shards = sorted((folder / "shards").glob("*.tar"))
    first, last = (path.stem.rpartition("-")[2] for path in (shards[0], shards[-1]))
    args = Namespace(
        train_data=f"{folder}/shards/{shards[0].stem.rpartition('-')[0]}-{{{first}..{last}}}.tar",
        train_num_samples=photos_of(folder),
        train_data_upsampling_factors=None,
        seed=0,
        batch_size=BATCH,
        world_size=1,
        workers=workers,
    )
    image = transform.image_transform(SIZE, is_train=True)
    nothing = torch.zeros(1, 1, dtype=torch.long)
    found = data.get_wds_dataset(args, image, is_train=True, tokenizer=lambda text: nothing)
    return lambda: iter(found.dataloader)


def webdataset(folder: Path, workers: int) -> Epoch:
    """Pillow's crop and resize in one, a flip, and normalising by numpy; torch's DataLoader around it."""
    np, torch, pil = (importlib.import_module(name) for name in ("numpy", "torch", "PIL.Image"))
    wds, random = importlib.import_module("webdataset"), importlib.import_module("random")
    scale = np.array([1 / (255 * deviation) for deviation in STD], dtype=np.float32)[:, None, None]
    offset = np.array([m / deviation for m, deviation in zip(MEAN, STD, strict=True)], dtype=np.float32)[:, None, None]

    def transform(image: Any) -> Any:
        side = min(image.size) * random.uniform(*SCALE) ** 0.5
        left, top = (random.uniform(0, edge - side) for edge in image.size)
        image = image.resize((SIZE, SIZE), pil.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        image = image.transpose(pil.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image
        levels = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
        levels *= scale
        levels -= offset
        return torch.from_numpy(levels)

    shards = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
    data = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000).decode("pilrgb")
    data = data.rename(image="jpg").map_dict(image=transform).to_tuple("image")
    loader = torch.utils.data.DataLoader(data, BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)


def streaming(folder: Path, workers: int) -> Epoch:
    """MDS of the same JPEGs, and torchvision's transforms on tensors, which are faster than those on images."""
    torch, base = importlib.import_module("torch"), importlib.import_module("streaming")
    v2 = importlib.import_module("torchvision.transforms.v2")
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(SIZE, SCALE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    own = folder / f"mds-{os.getpid()}"  # two processes may not open one folder
    own.symlink_to(folder / "mds")
    data = base.StreamingDataset(local=str(own), batch_size=BATCH, shuffle=True)

    class Photos(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return (transform(sample["image"]) for sample in data)

    loader = torch.utils.data.DataLoader(Photos(), BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: iter(loader)


def datasets(folder: Path, workers: int) -> Epoch:
    """`datasets` on Arrow files with the JPEGs inside, and transformers' CLIP image processor: without augmentation."""
    torch, library = importlib.import_module("torch"), importlib.import_module("datasets")
    processor = importlib.import_module("transformers").CLIPImageProcessor()

    def transform(rows: dict[str, Any]) -> dict[str, Any]:
        return processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")

    data = library.load_from_disk(str(folder / "arrow")).with_transform(transform)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (batch["pixel_values"] for batch in loader)


LOADERS = {each.__name__: each for each in (ours, open_clip, webdataset, streaming, datasets)}


def photos(folder: Path) -> Iterator[bytes]:
    """The JPEGs of the shards, in order."""
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file
                    yield file.read()


def photos_of(folder: Path) -> int:
    """How many there are."""
    return sum(1 for _ in photos(folder))


def write_mds(folder: Path) -> None:
    """The same JPEGs for mosaicml-streaming."""
    base, pil = importlib.import_module("streaming"), importlib.import_module("PIL.Image")
    with base.MDSWriter(out=str(folder / "mds"), columns={"image": "jpeg"}) as out:
        for photo in photos(folder):
            out.write({"image": pil.open(io.BytesIO(photo))})


def write_arrow(folder: Path) -> None:
    """The same JPEGs for `datasets`."""
    library = importlib.import_module("datasets")
    rows = {"image": [{"bytes": photo, "path": None} for photo in photos(folder)]}
    library.Dataset.from_dict(rows, features=library.Features({"image": library.Image()})).save_to_disk(
        str(folder / "arrow")
    )


WRITERS = {"mds": write_mds, "arrow": write_arrow}


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        try:
            threads = list(Path(f"/proc/{process}/task").iterdir())
            waiting += [int(child) for each in threads for child in (each / "children").read_text().split()]
        except OSError:
            continue
        found.append(process)
    return found


def cpu_of_tree(root: int) -> float:
    """Processor seconds of a process, its descendants, and those of them that have ended."""
    ticks = 0
    for process in tree(root):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Answer line by line."""
    who, folder, workers = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    keep = torchvision_operators() if who != "ours" else None
    if who == "prepare":
        WRITERS[workers](folder)
        return
    importlib.import_module("torch").set_num_threads(1)
    epoch = LOADERS[who](folder, int(workers))
    for _ in sys.stdin:
        cpu, start, count = cpu_of_tree(os.getpid()), time.perf_counter(), 0
        for batch in epoch():
            pixels = batch[0] if isinstance(batch, list | tuple) else batch
            if pixels.shape[1:] != (3, SIZE, SIZE) or not pixels.is_floating_point():
                raise SystemExit(f"{who}: a batch of {pixels.dtype} {tuple(pixels.shape)}")
            count += len(pixels)
        wall, cpu = time.perf_counter() - start, cpu_of_tree(os.getpid()) - cpu
        sys.stdout.write(json.dumps({"photos": count, "cpu": cpu, "wall": wall}) + "\n")
        sys.stdout.flush()
    del keep


if __name__ == "__main__":
    main()
