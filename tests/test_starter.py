"""The gate of the checkpoint that ships: it reads shapes, not colours alone, on renders that it never saw."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from facetclip.catalog import read_catalog
from facetclip.labels import encode_labels
from facetclip.model import STARTER, AttributeReader, load_model
from facetclip.render import RenderSpec, render_catalog
from facetclip.squares import square_planes

SEED = 9_001  # the starter was trained on seed 0
MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def reader() -> AttributeReader:
    return load_model("starter")


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = RenderSpec("starter", 240, seed=SEED, missing=0.0, wrong=0.0, size=96)
    return render_catalog(spec, tmp_path_factory.mktemp("unseen") / "catalog")


@pytest.fixture(scope="module")
def pixels(unseen: Path, reader: AttributeReader) -> torch.Tensor:
    with unseen.open(newline="") as file:
        images = [unseen.parent / row["image"] for row in csv.DictReader(file)]
    size, fit = reader.preprocessing.size, reader.preprocessing.fit
    return torch.from_numpy(np.stack([square_planes(path.read_bytes(), size, fit) for path in images]))


def test_it_reads_unseen_renders_of_its_own_kinds(reader: AttributeReader, unseen: Path, pixels: torch.Tensor) -> None:
    labels = encode_labels(read_catalog(str(unseen)), reader.schema)
    with torch.no_grad():
        logits = dict(zip(reader.schema.names, reader(pixels).logits, strict=True))
    right = {}
    for name, scores in logits.items():
        known = labels[name] >= 0
        right[name] = (scores.argmax(dim=1).numpy() == labels[name])[known].mean()
    assert right["kind"] >= 0.8, right
    assert min(right.values()) >= 0.8, right


def test_shuffled_patches_change_what_it_sees(reader: AttributeReader, pixels: torch.Tensor) -> None:
    side, patch = reader.preprocessing.size, reader.clip.config.vision_config.patch_size
    across = side // patch
    order = torch.randperm(across * across, generator=torch.Generator().manual_seed(0))
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch).reshape(len(pixels), 3, -1, patch, patch)
    grid = patches[:, :, order].reshape(len(pixels), 3, across, across, patch, patch)
    shuffled = grid.permute(0, 1, 2, 4, 3, 5).reshape(pixels.shape)
    with torch.no_grad():
        likeness = (reader.embed_images(pixels) * reader.embed_images(shuffled)).sum(dim=1)
    assert likeness.mean() < 0.85


def test_it_is_small_and_holds_no_pickle() -> None:
    files = [path for path in STARTER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
