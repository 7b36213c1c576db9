"""CLIP as a reader of attributes: every photo is compared with the prompt of every value.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021);
Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), whose towers are read the same way.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from facetclip.abstention import Cutoff
from facetclip.calibration import Calibration
from facetclip.errors import UserError
from facetclip.files import write_whole
from facetclip.images import Fit
from facetclip.model_card import model_card
from facetclip.schema import Schema, spans
from facetclip.towers import quicken

Prompts = Sequence[Sequence[str]]

PAGE = "README.md"
CARD = "facetclip.json"  # what our model folders hold beside the Hugging Face files
HEAD = "head.safetensors"  # classifier and bias, where there are any
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
    calibration: dict[str, Calibration] = field(default_factory=dict)  # attribute -> of its logits
    cutoffs: dict[str, tuple[Cutoff, ...]] = field(default_factory=dict)  # attribute -> how sure an answer must be
    by_product: tuple[str, ...] = ()  # attributes that all photos of a product answer together

    def to_json(self) -> str:
        """The card as JSON text."""
        card = asdict(self) | {"schema": json.loads(self.schema.to_json()) if self.schema else None}
        return json.dumps(card, indent=2, ensure_ascii=False) + "\n"

    def page(self, schema: Schema) -> str:
        """The card as a page for a person, about a model that reads `schema`."""
        made = {"start": self.start, "data digest": self.data_digest} | self.metrics
        return model_card(
            schema, origin=made, calibration=self.calibration, cutoffs=self.cutoffs, by_product=self.by_product
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelCard":
        """The card in a model folder; an empty one where the folder has none (a plain CLIP). UserError where it is
        damaged."""
        path = folder / CARD
        try:
            return cls.from_json(path.read_text(encoding="utf-8")) if path.is_file() else cls()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: is no model card, or of another version; copy the model anew") from error

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """The card stored by `to_json`."""
        card = json.loads(text)
        schema = card.pop("schema")
        calibration = {name: Calibration(**each) for name, each in card.pop("calibration", {}).items()}
        cutoffs = {name: tuple(Cutoff(**each) for each in found) for name, found in card.pop("cutoffs", {}).items()}
        return cls(
            schema=Schema.model_validate(schema) if schema else None,
            calibration=calibration,
            cutoffs=cutoffs,
            by_product=tuple(card.pop("by_product", ())),
            **card,
        )


class Outputs(NamedTuple):
    """What one pass gives: logits [n, values] of each attribute, unit features of photos and captions, and what their
    cosines are multiplied by; outside a pass an engine may not hold that weight."""

    logits: list[Tensor]
    images: Tensor  # [n, d]
    captions: Tensor | None  # [n, d], where captions were given
    scale: Tensor  # [1]


class AttributeReader(nn.Module):
    """Photos in, one row of logits over each attribute's values out.

    A photo is compared with the features of every value: those of its prompts, or where there is a `classifier`
    [values of all attributes, d] its rows. The logits of multi-valued attributes are taken relative to their mean over
    the values, plus a learned bias, and read by a sigmoid each; all others by a softmax over the attribute's values.

    The logit scale is kept 1-D, since sharding engines refuse scalars; `save_model` gives it its own shape back.
    """

    mean: Tensor  # [1, 3, 1, 1], of values in 0..1
    std: Tensor
    training_ids: Tensor  # [prompts, tokens]
    training_values: Tensor  # [prompts]: the value, counted over all attributes, that each stands for
    reading_ids: Tensor
    reading_values: Tensor
    multi: Tensor  # [values of all attributes]: 1 where the attribute is multi-valued
    classifier: nn.Parameter | None

    def __init__(self, clip: Any, tokenizer: Any, schema: Schema, preprocessing: Preprocessing) -> None:
        super().__init__()
        quicken(clip)
        self.clip = clip
        self.tokenizer = tokenizer
        self.schema = schema
        self.preprocessing = preprocessing
        self.card = ModelCard(schema=schema, fit=preprocessing.fit)
        self.calibration: dict[str, Calibration] = {}
        if hasattr(
            clip, "logit_bias"
        ):  # of a SigLIP's pairs, which nothing here reads: processes wait for its gradient
            clip.logit_bias.requires_grad_(False)
        self.scale_shape = clip.logit_scale.shape
        clip.logit_scale = nn.Parameter(clip.logit_scale.detach().reshape(1))
        attributes = schema.attributes.values()
        self.spans = spans([len(attribute.values) for attribute in attributes])
        self.multi_valued = [attribute.multi_valued for attribute in attributes]
        multi = [float(attribute.multi_valued) for attribute in attributes for _ in attribute.values]
        self._keep(multi=torch.tensor(multi))
        self._keep(mean=torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self._keep(std=torch.tensor(preprocessing.std).view(1, 3, 1, 1))
        self.set_prompts(
            training=[texts for attribute in attributes for texts in attribute.training_prompts],
            reading=[texts for attribute in attributes for texts in attribute.reading_prompts],
        )
        self.bias = nn.Parameter(torch.zeros(len(multi)), requires_grad=any(self.multi_valued))
        self.register_parameter("classifier", None)
        self.text_locked = False
        self._text: dict[bool, Tensor] = {}

    def _keep(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def set_prompts(self, training: Prompts, reading: Prompts) -> None:
        """The texts that stand for each value, counted over all attributes, in training and in reading."""
        for purpose, prompts in (("training", training), ("reading", reading)):
            ids = self.tokenise([text for texts in prompts for text in texts])
            values = torch.tensor([value for value, texts in enumerate(prompts) for _ in texts])
            self._keep(**{f"{purpose}_ids": ids, f"{purpose}_values": values})

    def tokenise(self, texts: Sequence[str], multiple: int = 1) -> Tensor:
        """Token ids [n, tokens]; tokens are a `multiple` of that, or as many as there can be."""
        # Truncating to the longest prompt is exact for CLIP's causal text tower, pooled at the end-of-text token;
        # SigLIP attends to its padding, so it keeps the full length.
        text = self.clip.config.text_config
        padding = "max_length" if self.clip.config.model_type == "siglip" else "longest"
        tokens = self.tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=text.max_position_embeddings,
            return_tensors="pt",
        )["input_ids"]
        longer = min(text.max_position_embeddings, -(-tokens.shape[1] // multiple) * multiple) - tokens.shape[1]
        return nn.functional.pad(tokens, (0, longer), value=self.tokenizer.pad_token_id)

    def train(self, mode: bool = True) -> "AttributeReader":
        """As in torch; the prompt features kept by evaluation are dropped, since weights may change now."""
        if not self.text_locked:
            self._text = {}
        super().train(mode)
        return self

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit features [n, d] of pixels [n, 3, size, size]: uint8 in 0..255, or floats as `augment` gives them."""
        if pixels.dtype == torch.uint8:
            scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format)
            pixels = scaled.div_(255).sub_(self.mean).div_(self.std)
        features = self.clip.get_image_features(pixel_values=pixels)
        return nn.functional.normalize(features.pooler_output.float(), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Unit features [n, d] of token ids [n, tokens]."""
        features = self.clip.get_text_features(input_ids=ids)
        return nn.functional.normalize(features.pooler_output.float(), dim=-1)

    def embed_prompts(self) -> Tensor:
        """Unit features [values of all attributes, d]: the mean of a value's prompts; computed once in evaluation."""
        known = self._text.get(self.training)
        if known is not None:
            return known
        ids = self.training_ids if self.training else self.reading_ids
        values = self.training_values if self.training else self.reading_values
        each = self.embed_texts(ids)
        summed = each.new_zeros(len(self.multi), each.shape[1]).index_add(0, values, each)
        text = nn.functional.normalize(summed, dim=-1)
        if self.text_locked or not (self.training or torch.is_grad_enabled()):
            text = self._text[self.training] = text.detach()
        return text

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, [1]; at most CLIP's own 100."""
        free = self.clip.logit_scale
        # With clamp's own gradient, 0 beyond the cap, a scale that was once above it could never come down again.
        return (free + (free.clamp(max=MOST_SCALE) - free).detach()).exp()

    def logits(self, images: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        """Logits [n, values] of each attribute, in schema order, from unit features [n, d].

        `rows` [values of all attributes, d]: what photos are compared with, where it is known already.
        """
        if rows is None:
            rows = self.embed_prompts() if self.classifier is None else self.classifier
        with torch.autocast(images.device.type, enabled=False):  # of numbers about 25 bf16 knows every eighth
            flat = self.scale.float() * images.float() @ rows.float().T
        parts = [flat[:, span] for span in self.spans]
        centred = [
            p - p.mean(1, keepdim=True) if multi else p for p, multi in zip(parts, self.multi_valued, strict=True)
        ]
        bias = self.bias * self.multi if self.classifier is None else self.bias
        return [part + bias[span] for part, span in zip(centred, self.spans, strict=True)]

    def forward(self, inputs: Tensor, caption_ids: Tensor | None = None) -> Outputs:
        """Read photos [n, 3, size, size], or unit features of photos [n, d] that were computed before.

        `caption_ids` [n, tokens]: one caption a photo, to be embedded beside it.
        """
        images = inputs if inputs.ndim == 2 else self.embed_images(inputs)
        captions = None if caption_ids is None else self.embed_texts(caption_ids)
        return Outputs(self.logits(images), images, captions, self.scale)

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
    own = schema is None
    schema = schema or card.schema
    if schema is None:
        raise UserError(f"model {source!r} brings no schema; name one, for it was not fine-tuned by facetclip")
    clip, tokenizer = _load_parts(place, source)
    reader = AttributeReader(clip, tokenizer, schema, _preprocessing(folder, clip, fit or card.fit))
    reader.card = replace(card, schema=schema, fit=reader.preprocessing.fit)
    if own:  # classifier, bias and calibration belong to the values they were trained on
        reader.calibration = dict(card.calibration)
        _load_head(reader, folder / HEAD)
    return reader.eval()


def _load_head(reader: AttributeReader, path: Path) -> None:
    from safetensors.torch import load

    if path.is_file():
        stored = load(path.read_bytes())
        reader.bias = nn.Parameter(stored["bias"])
        if "classifier" in stored:
            reader.classifier = nn.Parameter(stored["classifier"])


def _load_parts(place: str, source: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    if not Path(place).is_dir() and (place.count("/") != 1 or place.startswith((".", "/"))):
        raise UserError(f"model {source!r}: expected a folder, a hub id (openai/clip-vit-base-patch32) or starter")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type not in SUPPORTED:
            raise UserError(
                f"model {source!r} is of type {config.model_type!r}; expected one of {', '.join(SUPPORTED)}"
            )
        clip, found = AutoModel.from_pretrained(
            place,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with their names
        )
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        run = Path(place, "model", "config.json").exists() and not Path(place, "config.json").exists()
        why = f"give its model, {Path(place, 'model')}" if run else str(error).strip().splitlines()[0]
        raise UserError(f"model {source!r} cannot be loaded: {why}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    # transformers makes up at random what a folder lacks
    if lacking := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
        raise UserError(
            f"model {source!r} lacks {len(lacking)} of its weights in their shapes, such as {lacking[0]}; copy it anew"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"model {source!r} brings no vocabulary; copy its tokenizer's files too")
    return clip, tokenizer


def _preprocessing(folder: Path, clip: Any, fit: Fit) -> Preprocessing:
    """Mean and deviation as the folder states them; else those the family was trained with."""
    path = folder / "preprocessor_config.json"
    try:
        stated = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is no table in JSON; copy the model anew") from error
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
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `reader` as a Hugging Face folder with a card; plain `CLIPModel.from_pretrained` loads it.

    `card` and `weights` (named as in an untuned reader's state) replace the reader's own; `half`: towers as float16.
    """
    from safetensors.torch import save

    weights = reader.state_dict() if weights is None else weights
    named = {name.removeprefix("clip."): value.detach().cpu() for name, value in weights.items() if "clip." in name}
    named["logit_scale"] = named["logit_scale"].reshape(reader.scale_shape)
    stored = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in named.items()
    }
    head = {name: weights[name].detach().cpu().contiguous() for name in ("bias", "classifier") if name in weights}
    reader.clip.config.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    write_whole(folder / "preprocessor_config.json", _processor_json(reader.preprocessing))
    if "classifier" in head or head["bias"].any():
        write_whole(folder / HEAD, save(head))
    card = card or reader.card
    write_whole(folder / PAGE, card.page(reader.schema).encode())
    write_whole(folder / CARD, card.to_json().encode())
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
