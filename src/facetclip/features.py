"""Photos' features, computed once where the image tower is frozen, and kept on disk for other runs."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from facetclip.batches import Batch, PixelReader, Portion, ahead
from facetclip.collectives import gather_objects, join_shares, share_of
from facetclip.files import write_whole
from facetclip.index import ShardIndex
from facetclip.model import AttributeReader
from facetclip.tuning import TEXT

PORTION = 64  # photos at a time


class FeatureReader:
    """Batches of features [n, d] in place of photos; `rows` ascending."""

    def __init__(self, index: ShardIndex, rows: np.ndarray, features: Tensor) -> None:
        self.index, self.rows, self.features = index, rows, features

    def coming(self, portions: Iterable[Portion], rows_of: Callable[[Portion], np.ndarray]) -> Iterator[Portion]:
        """The same portions: features are all here."""
        return iter(portions)

    def batch(self, rows: np.ndarray, crops: np.ndarray | None = None) -> Batch:
        """Features and labels of `rows`, which are among those that were computed, each of a whole photo."""
        places = torch.from_numpy(np.searchsorted(self.rows, rows))
        return Batch(rows, self.features[places], torch.from_numpy(self.index.label_matrix(rows)))


def feature_reader(
    reader: AttributeReader, pixels: PixelReader, rows: np.ndarray, folder: Path, accelerator: Accelerator
) -> FeatureReader:
    """The features of `rows` by `reader`, without augmentation: from `folder` if every process finds them there, else
    computed by all and put there. The file's name is a digest of all that they depend on."""
    from safetensors.torch import load, save

    path = folder / f"features-{_key(reader, pixels.index, rows, accelerator.mixed_precision)}.safetensors"
    if all(gather_objects(path.is_file())):
        return FeatureReader(pixels.index, rows, load(path.read_bytes())["features"])
    features = _computed(reader, pixels, rows, accelerator)
    if accelerator.is_main_process:
        write_whole(path, save({"features": features}))
    return FeatureReader(pixels.index, rows, features)


@torch.no_grad()  # not inference_mode: weights moved to another device within it could never be trained
def _computed(reader: AttributeReader, pixels: PixelReader, rows: np.ndarray, accelerator: Accelerator) -> Tensor:
    reader = reader.to(accelerator.device).eval()
    mine = share_of(rows)
    parts = []
    portions = [mine[start : start + PORTION] for start in range(0, len(mine), PORTION)]
    for batch in ahead(pixels.batch, pixels.coming(portions, lambda rows: rows)):
        with accelerator.autocast():
            parts.append(reader.embed_images(batch.inputs.to(accelerator.device)).float())
    return join_shares(torch.cat(parts), len(rows)).cpu().clone()


def _key(reader: AttributeReader, index: ShardIndex, rows: np.ndarray, precision: str) -> str:
    facts = (index.digest, reader.preprocessing, reader.clip.config.vision_config, precision)
    total = hashlib.sha256("\0".join(map(str, facts)).encode())
    total.update(rows.tobytes())
    for name, weight in sorted(reader.state_dict().items()):
        if name.startswith("clip.") and not name.startswith(TEXT):
            total.update(name.encode())
            total.update(weight.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()[:32]
