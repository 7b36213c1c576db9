"""Parts of CLIP's towers computed otherwise than transformers does, to the same numbers, in less time or memory."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facetclip.config import Training

STEEPNESS = 1.702  # of the sigmoid that stands in for a GELU (Hendrycks and Gimpel 2016)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), written as one SiLU: its backward pass reads one tensor and not three."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Of any shape."""
        return functional.silu(STEEPNESS * inputs) / STEEPNESS


def quicken(clip: Any) -> None:
    """Change a CLIP's towers in place; weights keep their names, and other families are left as they are."""
    if clip.config.model_type != "clip":
        return
    for tower in (clip.text_model, clip.vision_model):
        if tower.config.hidden_act == "quick_gelu":
            for layer in tower.encoder.layers:
                layer.mlp.activation_fn = QuickGELU()
    last = clip.vision_model.encoder.layers[-1]
    last.forward = MethodType(_class_token_alone, last)


def _class_token_alone(layer: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """[n, tokens, width] -> [n, 1, width]: the last layer of an image tower, of whose output only the first token is
    read: one query an image, and ten of the layer's twelve products for one token instead of all."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden_states)
    mixed = functional.scaled_dot_product_attention(
        _heads(attention, attention.q_proj(normed[:, :1].contiguous())),
        _heads(attention, attention.k_proj(normed)),
        _heads(attention, attention.v_proj(normed)),
        dropout_p=attention.dropout if layer.training else 0.0,
        scale=attention.scale,
    )
    first = hidden_states[:, :1] + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return first + layer.mlp(layer.layer_norm2(first))


def _heads(attention: Any, projected: Tensor) -> Tensor:
    """[n, tokens, width] -> [n, heads, tokens, width of a head]."""
    return projected.unflatten(2, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def shape_computation(clip: Any, spec: Training) -> None:
    """As `train.recompute` and `train.compile` say.

    Recomputed layers keep their inputs alone in a forward pass (Chen et al., "Training Deep Nets with Sublinear Memory
    Cost", 2016). Compiled ones are so in training alone, each tower's once; to read batches of any size they run as
    they are.
    """
    if spec.recompute:
        clip.activation_checkpointing_enable({"use_reentrant": False})
    if not spec.compile:
        return
    for tower in (clip.text_model, clip.vision_model):
        for layer in tower.encoder.layers:
            layer.forward = _Compiled(layer.forward, layer)


class _Compiled:
    """The forward pass of a layer, compiled while it trains."""

    def __init__(self, plain: Any, layer: nn.Module) -> None:
        self.plain, self.layer = plain, layer
        self.compiled = torch.compile(plain, dynamic=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.compiled if self.layer.training else self.plain)(*args, **kwargs)
