"""A CLIP from scratch: random weights of a given shape, and a tokenizer learned from the prompts."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from facetclip.config import NewModel
from facetclip.images import Fit
from facetclip.model import CLIP_STATISTICS, AttributeReader, Preprocessing
from facetclip.schema import Schema


def new_model(
    shape: NewModel, schema: Schema, captions: Iterable[str], *, seed: int, fit: Fit = "pad"
) -> AttributeReader:
    """A CLIP with random weights (a pure function of `seed`) and a tokenizer trained on `captions`."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = _train_tokenizer(captions, shape.vocabulary)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        **_tower(shape.vision_width, shape.vision_layers, shape.vision_heads),
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": shape.positions,
        **_tower(shape.text_width, shape.text_layers, shape.text_heads),
        **special,
    }
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=shape.embedding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIPModel(config)
    return AttributeReader(clip, tokenizer, schema, Preprocessing(shape.image_size, *CLIP_STATISTICS, fit=fit))


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _train_tokenizer(captions: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE in CLIP's own form (lower case, `</w>` ends a word), learned from `captions`.

    Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016). The trainer of `tokenizers`
    breaks ties at random, and every process of a launch must learn the same merges. Every byte is a token both inside
    and at the end of a word, so no text is ever unknown.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    base = [*letters, *(letter + "</w>" for letter in letters)]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    plain = CLIPTokenizer(vocab={word: place for place, word in enumerate([*base, *ends])}, merges=[])
    words = Counter(word for caption in sorted(set(captions)) for word in _words(plain.tokenize(caption)))
    merges = _merges(words, most=vocabulary - len(base) - len(ends))
    table = [*base, *("".join(pair) for pair in merges), *ends]
    joined: Any = merges  # pairs, as the library wants them but does not say
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(dict.fromkeys(table))}, merges=joined)


def _words(letters: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Letters cut into words behind each `</w>`."""
    word: list[str] = []
    for letter in letters:
        word.append(letter)
        if letter.endswith("</w>"):
            yield tuple(word)
            word = []


def _merges(words: Mapping[tuple[str, ...], int], most: int) -> list[tuple[str, str]]:
    """The `most` pairs of neighbours to join, most frequent first, ties by alphabet; none that occurs once."""
    merges: list[tuple[str, str]] = []
    counted = dict(words)
    while len(merges) < most:
        pairs = Counter()
        for word, count in counted.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for word, count in counted.items():
            joined[_joined(word, best)] += count
        counted = joined
    return merges


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    for part in word:
        if parts and (parts[-1], part) == pair:
            parts[-1] += part
        else:
            parts.append(part)
    return tuple(parts)
