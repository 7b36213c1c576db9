"""CLIP as a reader of attributes: every photo is compared with the prompt of every value.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021);
Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), whose towers are read the same way.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facetclip.config import NewModel
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.images import Fit
from facetclip.schema import Schema, spans

CARD = "facetclip.json"  # what our model folders hold beside the Hugging Face files
STARTER = Path(__file__).parent / "starter"
MOST_SCALE = math.log(100)  # CLIP's own cap on the logit scale
SUPPORTED = ("clip", "siglip")


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the square, normalised input of the image tower."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "pad"


@dataclass(frozen=True)
class ModelCard:
    """What a model folder says of itself beside its weights."""

    schema: Schema | None = None
    fit: Fit = "pad"
    start: str | None = None
    data_digest: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The card as JSON text."""
        card = asdict(self) | {"schema": json.loads(self.schema.to_json()) if self.schema else None}
        return json.dumps(card, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelCard":
        """The card in a model folder; an empty one where the folder has none (a plain CLIP)."""
        path = folder / CARD
        if not path.is_file():
            return cls()
        card = json.loads(path.read_text(encoding="utf-8"))
        schema = card.pop("schema")
        return cls(schema=Schema.model_validate(schema) if schema else None, **card)


class AttributeReader(nn.Module):
    """Photos in, one row of logits over each attribute's values out.

    The logit scale is kept 1-D, since sharding engines refuse scalars; `save_model` gives it its own shape back.
    """

    mean: Tensor  # [1, 3, 1, 1], of values in 0..1
    std: Tensor
    prompt_ids: Tensor  # [values of all attributes, tokens]

    def __init__(self, clip: Any, tokenizer: Any, schema: Schema, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.schema = schema
        self.preprocessing = preprocessing
        self.card = ModelCard(schema=schema, fit=preprocessing.fit)
        self.scale_shape = clip.logit_scale.shape
        clip.logit_scale = nn.Parameter(clip.logit_scale.detach().reshape(1))
        prompts = [text for attribute in schema.attributes.values() for text in attribute.prompt_texts]
        self.spans = spans([len(attribute.values) for attribute in schema.attributes.values()])
        self.register_buffer("prompt_ids", self._tokenise(prompts), persistent=False)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self._text: Tensor | None = None
        self._text_locked = False

    def _tokenise(self, prompts: Sequence[str]) -> Tensor:
        # Truncating to the longest prompt is exact for CLIP's causal text tower, pooled at the end-of-text token;
        # SigLIP attends to its padding, so it keeps the full length.
        text = self.clip.config.text_config
        padding = "max_length" if self.clip.config.model_type == "siglip" else "longest"
        tokens = self.tokenizer(
            list(prompts),
            padding=padding,
            truncation=True,
            max_length=text.max_position_embeddings,
            return_tensors="pt",
        )
        return tokens["input_ids"]

    def train(self, mode: bool = True) -> "AttributeReader":
        """As in torch; the prompt features kept by evaluation are dropped, since weights may change now."""
        if not self._text_locked:
            self._text = None
        super().train(mode)
        return self

    def lock_text(self) -> None:
        """Train the image tower alone: the prompt features are computed once and stay."""
        self._text_locked = True
        for name, weight in self.clip.named_parameters():
            if name.startswith(("text_model.", "text_projection.")):
                weight.requires_grad_(False)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit features [n, d] of pixels [n, 3, size, size]: uint8 in 0..255, or floats in 0..1."""
        scaled = pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels
        features = self.clip.get_image_features(pixel_values=(scaled - self.mean) / self.std)
        return nn.functional.normalize(features.pooler_output.float(), dim=-1)

    def embed_prompts(self) -> Tensor:
        """Unit features [values of all attributes, d]; computed once while evaluating."""
        if self._text is not None:
            return self._text
        features = self.clip.get_text_features(input_ids=self.prompt_ids)
        text = nn.functional.normalize(features.pooler_output.float(), dim=-1)
        if self._text_locked or not (self.training or torch.is_grad_enabled()):
            text = self._text = text.detach()
        return text

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Logits [n, values] for each attribute, in schema order, from pixels [n, 3, size, size]."""
        scale = self.clip.logit_scale.clamp(max=MOST_SCALE).exp()
        logits = scale * self.embed_images(pixels) @ self.embed_prompts().T
        return [logits[:, span] for span in self.spans]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.clip.logit_scale.device


def load_model(source: str, schema: Schema | None = None, *, fit: Fit | None = None) -> AttributeReader:
    """The reader in a folder of ours, or any CLIP or SigLIP folder or hub id, which then reads `schema` zero-shot.

    `starter` is the small model that ships with the package. UserError when there is no such model, when it is neither
    CLIP nor SigLIP, or when neither the folder nor the caller brings a schema.
    """
    place = str(STARTER) if source == "starter" else source
    folder = Path(place)
    card = ModelCard.from_folder(folder)
    schema = schema or card.schema
    if schema is None:
        raise UserError(f"model {source!r} brings no schema; name one, for it was not fine-tuned by facetclip")
    clip, tokenizer = _load_parts(place, source)
    reader = AttributeReader(clip, tokenizer, schema, _preprocessing(folder, clip, fit or card.fit))
    reader.card = ModelCard(
        schema=schema,
        fit=reader.preprocessing.fit,
        start=card.start,
        data_digest=card.data_digest,
        metrics=card.metrics,
    )
    return reader.eval()


def _load_parts(place: str, source: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    if not Path(place).is_dir() and (place.count("/") != 1 or place.startswith((".", "/"))):
        raise UserError(
            f"model {source!r}: expected a folder, a hub id such as openai/clip-vit-base-patch32, or starter"
        )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type not in SUPPORTED:
            raise UserError(
                f"model {source!r} is of type {config.model_type!r}; expected one of {', '.join(SUPPORTED)}"
            )
        clip = AutoModel.from_pretrained(place, config=config, use_safetensors=True, dtype=torch.float32)
        return clip, AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model {source!r} cannot be loaded: {first}") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def _preprocessing(folder: Path, clip: Any, fit: Fit) -> Preprocessing:
    """Mean and deviation as the folder states them; else those the family was trained with."""
    path = folder / "preprocessor_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    default = CLIP_STATISTICS if clip.config.model_type == "clip" else ((0.5,) * 3, (0.5,) * 3)
    return Preprocessing(
        size=clip.config.vision_config.image_size,
        mean=tuple(stated.get("image_mean", default[0])),
        std=tuple(stated.get("image_std", default[1])),
        fit=fit,
    )


CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def save_model(
    reader: AttributeReader,
    folder: Path,
    *,
    card: ModelCard | None = None,
    half: bool = False,
) -> Path:
    """Write `reader` as a Hugging Face folder with a card; plain `CLIPModel.from_pretrained` loads it.

    `card` replaces the reader's own; `half`: weights as float16.
    """
    from safetensors.torch import save

    shape = reader.scale_shape
    named = {
        name.removeprefix("clip."): value.detach().cpu()
        for name, value in reader.state_dict().items()
        if name.startswith("clip.")
    }
    named["logit_scale"] = named["logit_scale"].reshape(shape)
    stored = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in named.items()
    }
    reader.clip.config.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    write_whole(folder / "preprocessor_config.json", _processor_json(reader.preprocessing))
    write_whole(folder / CARD, (card or reader.card).to_json().encode())
    write_whole(folder / "model.safetensors", save(stored, metadata={"format": "pt"}))
    return folder


def _processor_json(preprocessing: Preprocessing) -> bytes:
    size = preprocessing.size
    return json.dumps(
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(preprocessing.mean),
            "image_std": list(preprocessing.std),
            "do_convert_rgb": True,
        },
        indent=2,
    ).encode()


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
