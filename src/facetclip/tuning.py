"""What of a model is trained, and how what was trained becomes plain weights again.

Modes: `zero_shot` nothing; `probe` a linear classifier started from the prompt features (as Wortsman et al. 2022 do);
`prompt` context vectors before the words of each prompt (CoOp, Zhou et al., "Learning to Prompt for Vision-Language
Models", 2022); `lora` low-rank updates in both towers (Hu et al. 2021; Zanella and Ben Ayed, "Low-Rank Few-Shot
Adaptation of Vision-Language Models", 2024); `image_tower` with the text locked (Zhai et al., "LiT", 2022);
`last_blocks` the top of both towers; `full` everything.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facetclip.config import Tuning
from facetclip.errors import UserError
from facetclip.model import AttributeReader

TEXT = ("clip.text_model.", "clip.text_projection.")
LAYER = re.compile(r"clip\.(text|vision)_model\.encoder\.layers\.(\d+)\.")
FIRST = ("embeddings.", ".pre_layrnorm.")  # what comes before the first layer
FROZEN_IMAGES = ("zero_shot", "probe", "prompt")
CONTEXT = "a photo of a"  # what a learned context starts from
ADAPTER = "default"  # peft's name for the only one there is


class Context(nn.Module):
    """A token embedding whose places `first` to `first + length` hold learned vectors instead of tokens."""

    def __init__(self, inner: nn.Embedding, start: Tensor, first: int) -> None:
        super().__init__()
        self.inner = inner
        self.context = nn.Parameter(start)  # [length, width], or [prompts, length, width]
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [n, tokens] -> [n, tokens, width]."""
        embedded = self.inner(ids)
        learned = self.context.to(embedded.dtype).expand(len(ids), -1, -1)
        after = self.first + learned.shape[1]
        return torch.cat([embedded[:, : self.first], learned, embedded[:, after:]], dim=1)


def tune(reader: AttributeReader, spec: Tuning) -> None:
    """Mark what trains, and put in what is new. UserError where the model does not know a mode."""
    trainable = {name for name, weight in reader.named_parameters() if weight.requires_grad}  # without an unused bias
    depths = layer_depths(reader)
    for name, weight in reader.named_parameters():
        weight.requires_grad_(name in trainable and _chosen(name, depths[name], spec))
    if spec.mode == "probe":
        with torch.no_grad():
            reader.classifier = nn.Parameter(reader.eval().embed_prompts().clone())
        reader.bias.requires_grad_(True)
    elif spec.mode == "prompt":
        _add_context(reader, spec)
    elif spec.mode == "lora":
        _add_lora(reader, spec)
        reader.bias.requires_grad_("bias" in trainable)
    reader.text_locked = not any(
        weight.requires_grad for name, weight in reader.named_parameters() if name.startswith(TEXT)
    )


def _chosen(name: str, depth: int, spec: Tuning) -> bool:
    """Whether a parameter of the start model is trained."""
    if spec.mode == "full" or (name == "bias" and spec.mode != "zero_shot"):
        return True
    if spec.mode == "last_blocks":
        return depth <= spec.blocks
    return spec.mode == "image_tower" and not name.startswith(TEXT)


def _add_context(reader: AttributeReader, spec: Tuning) -> None:
    if reader.clip.config.model_type != "clip":
        raise UserError(f"tuning.mode 'prompt' needs a CLIP, found a {reader.clip.config.model_type}; try 'probe'")
    ids = reader.training_ids
    room = reader.clip.config.text_config.max_position_embeddings - ids.shape[1]
    if spec.context > room:
        raise UserError(f"tuning.context = {spec.context}: the longest prompt leaves room for {room}")
    filler = ids[:, :1].expand(-1, spec.context)  # the start token, which is never the end token that is pooled
    longer = torch.cat([ids[:, :1], filler, ids[:, 1:]], dim=1)
    for purpose, tensor in (("ids", longer), ("values", reader.training_values)):
        for when in ("training", "reading"):  # one wording: the context was learned for it
            reader.register_buffer(f"{when}_{purpose}", tensor, persistent=False)
    embeddings: Any = reader.clip.text_model.embeddings
    table = embeddings.token_embedding
    words = reader.tokenise([CONTEXT])[0, 1:-1]  # without start and end
    start = table.weight.detach()[words.repeat(-(-spec.context // len(words)))[: spec.context]]
    start = start.expand(len(ids), -1, -1) if spec.per_value else start
    embeddings.token_embedding = Context(table, start.clone(), first=1)


def _add_lora(reader: AttributeReader, spec: Tuning) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inside = r".*\.encoder\.layers\.\d+\.(.*\.)?"
    linear = [name for name, layer in reader.clip.named_modules() if isinstance(layer, nn.Linear)]
    for place in spec.places:
        if not any(re.fullmatch(inside + re.escape(place), name) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear if re.match(inside, name)})
            raise UserError(
                f"tuning.places: no linear layer of the model is called {place}; those are called {', '.join(known)}"
            )
    targets = f"{inside}({'|'.join(map(re.escape, spec.places))})"
    alpha: Any = spec.strength  # peft takes a fraction, though it says int
    adapter: Any = LoraConfig(r=spec.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(adapter, reader.clip, adapter_name=ADAPTER)


def layer_depths(reader: AttributeReader) -> dict[str, int]:
    """Parameter -> how many layers lie above it in its tower: 0 for the projection, all and one for the embeddings."""
    names = [name for name, _ in reader.named_parameters()]
    layers = {"text": 0, "vision": 0}
    for name in names:
        if found := LAYER.match(name):
            layers[found[1]] = max(layers[found[1]], int(found[2]) + 1)
    return {name: _depth(name, layers) for name in names}


def _depth(name: str, layers: Mapping[str, int]) -> int:
    if found := LAYER.match(name):
        return layers[found[1]] - int(found[2])
    if name.endswith(".context"):
        return 0
    if any(word in name for word in FIRST):
        return layers["text" if name.startswith(TEXT) else "vision"] + 1
    return 0


def rate_factors(reader: AttributeReader, layer_decay: float) -> dict[str, float]:
    """Trainable parameter -> what its rate is multiplied by (layer-wise decay, Clark et al., "ELECTRA", 2020)."""
    depths = layer_depths(reader)
    return {name: layer_decay ** depths[name] for name, w in reader.named_parameters() if w.requires_grad}


@torch.no_grad()
def plain_weights(reader: AttributeReader) -> dict[str, Tensor]:
    """The weights under the names of an untuned reader: adapters merged, a learned context become a classifier."""
    named = {
        name.replace(".base_layer.", ".").replace(".token_embedding.inner.", ".token_embedding."): value
        for name, value in reader.state_dict().items()
        if ".lora_" not in name and not name.endswith(".token_embedding.context")
    }
    for name, module in reader.named_modules():
        if hasattr(module, "get_delta_weight"):
            adapted: Any = module
            named[f"{name}.weight"] = adapted.base_layer.weight + adapted.get_delta_weight(ADAPTER)
    if isinstance(reader.clip.text_model.embeddings.token_embedding, Context):
        training = reader.training
        named["classifier"] = reader.eval().embed_prompts().clone()
        reader.train(training)
    return named


def blend(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Weights a share `alpha` of the way from `start` to `tuned` (WiSE-FT, Wortsman et al., "Robust fine-tuning of
    zero-shot models", 2022)."""
    return {
        name: torch.lerp(start[name].to(weight.dtype), weight, alpha) if weight.is_floating_point() else weight
        for name, weight in tuned.items()
    }
