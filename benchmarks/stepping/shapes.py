"""The shapes that steps are measured at, as each library wants to be told; weights are random everywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, POSITIONS = 49408, 77  # of every CLIP of OpenAI's


@dataclass(frozen=True)
class Tower:
    """Of one tower."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Shape:
    """A CLIP's."""

    name: str
    size: int
    patch: int
    vision: Tower
    text: Tower
    embedding: int
    vocabulary: int = VOCABULARY
    positions: int = POSITIONS


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("ViT-B-32", 224, 32, Tower(768, 12, 12), Tower(512, 12, 8), 512),
        Shape("ViT-B-16", 224, 16, Tower(768, 12, 12), Tower(512, 12, 8), 512),
        Shape("ViT-L-14", 224, 14, Tower(1024, 24, 16), Tower(768, 12, 12), 768),
        Shape("tiny", 32, 8, Tower(64, 2, 2), Tower(64, 2, 2), 32, vocabulary=600),
    )
}


def transformers_config(shape: Shape) -> Any:
    """As a `CLIPConfig`, which is ViT-B/32 by default."""
    from transformers import CLIPConfig

    ends = {"bos_token_id": shape.vocabulary - 2, "eos_token_id": shape.vocabulary - 1, "pad_token_id": 1}
    return CLIPConfig(
        vision_config={"image_size": shape.size, "patch_size": shape.patch, **_tower(shape.vision)},
        text_config={
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": shape.positions,
            **ends,
            **_tower(shape.text),
        },
        projection_dim=shape.embedding,
    )


def _tower(tower: Tower) -> dict[str, int]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
    }


def open_clip_model(shape: Shape) -> Any:
    """As open_clip makes it from the same numbers."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=shape.vision.layers,
        width=shape.vision.width,
        head_width=shape.vision.width // shape.vision.heads,
        patch_size=shape.patch,
        image_size=shape.size,
    )
    text = CLIPTextCfg(
        context_length=shape.positions,
        vocab_size=shape.vocabulary,
        width=shape.text.width,
        heads=shape.text.heads,
        layers=shape.text.layers,
    )
    return CLIP(shape.embedding, vision, text, output_dict=True)


def photos(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Noise as uint8 [count, 3, size, size]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def captions(shape: Shape, count: int, seed: int = 0) -> np.ndarray:
    """Token ids int64 [count, positions], of eight to twenty words, ended and padded as CLIP's are."""
    draw = np.random.default_rng(seed)
    ids = np.zeros((count, shape.positions), dtype=np.int64)
    for row in ids:
        words = draw.integers(8, 21)
        row[0], row[words + 1] = shape.vocabulary - 2, shape.vocabulary - 1
        row[1 : words + 1] = draw.integers(2, shape.vocabulary - 2, words)
    return ids


def here() -> Path:
    """The root of the project."""
    return Path(__file__).parents[2]
