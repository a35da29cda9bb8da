"""Guidance away from what a UNet draws with blind self-attention (PAG, Ahn et al. 2024, arXiv:2403.17377), and FreeU.

Perturbed: in some layers every place of the image attends to itself alone. The push is
pag_scale * (cond - perturbed cond), beside that of the negative prompt.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


FREEU_FACTORS = ("b1", "b2", "s1", "s2")


@dataclass(frozen=True)
class PerturbedAttention:
    """PAG with the meaning of diffusers' pipelines: names are those of its arguments."""

    scale: float
    adaptive_scale: float = 0.0
    applied_layers: tuple[str, ...] = ("mid",)

    def scale_at(self, t: float) -> float:
        """The scale at timestep t (0..999): less by `adaptive_scale` for each timestep that is done, 0 at least.

        PAGMixin._get_pag_scale of huggingface/diffusers, src/diffusers/pipelines/pag/pag_utils.py, 0.42 (Apache-2.0)
        """
        if self.adaptive_scale <= 0:
            return self.scale
        return max(self.scale - self.adaptive_scale * (1000 - t), 0.0)


def self_attentions(unet: nn.Module, layers: Sequence[str]) -> list[Attention]:
    """The self-attention layers of a UNet whose names hold one of `layers`, which are regular expressions.

    "mid", "down.block_1", "up_blocks.1.attentions.0" are all meant. PAGMixin._set_pag_attn_processor of diffusers,
    src/diffusers/pipelines/pag/pag_utils.py in 0.42 (Apache-2.0). Raises ValueError for one that is in no name.
    """
    named = [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and not module.is_cross_attention
    ]
    found: dict[str, Attention] = {}
    for layer in layers:
        try:
            own = {name: module for name, module in named if re.search(layer, name) and not _ends_alike(layer, name)}
        except re.error as error:
            raise ValueError(f"`pag_applied_layers`: {layer!r} is no regular expression ({error}).") from error
        if not own:
            known = ", ".join(sorted({name.partition(".transformer_blocks")[0] for name, _ in named}))
            raise ValueError(
                f"`pag_applied_layers`: no self-attention of the UNet has {layer!r} in its name. They are in {known}."
            )
        found |= own
    return list(found.values())


def _ends_alike(layer: str, name: str) -> bool:
    """Whether both end in the same number, by which diffusers leaves a layer out."""
    last = layer.rpartition(".")[2]
    return last.isnumeric() and last == name.rpartition(".")[2]


class BlindAttention:
    """A processor of self-attention in which each place attends to itself alone: the values, projected.

    The perturbed half of PAGIdentitySelfAttnProcessor2_0 of huggingface/diffusers,
    src/diffusers/models/attention_processor.py in 0.42 (Apache-2.0).
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: (b, n, c) or (b, c, h, w); the same shape comes back."""
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        hidden_states = attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))
        if len(shape) == 4:
            hidden_states = hidden_states.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor


@contextmanager
def blind_attention(attentions: Sequence[Attention]) -> Iterator[None]:
    """Inside the block these layers attend to nothing but the place itself; then they have their processors again."""
    processors = [attention.processor for attention in attentions]
    try:
        for attention in attentions:
            attention.processor = BlindAttention()
        yield
    finally:
        for attention, processor in zip(attentions, processors, strict=True):
            attention.processor = processor


@contextmanager
def freeu_on(unet: nn.Module, factors: Mapping[str, float] | None) -> Iterator[None]:
    """Inside the block a UNet has FreeU (Si et al. 2023, arXiv:2309.11497) with these factors; None: as it is.

    Afterwards it has what it had, also where the user had called `enable_freeu`.
    """
    blocks: list[Any] = [] if factors is None else list(unet.up_blocks)  # type: ignore[arg-type]
    before = [{name: block.__dict__[name] for name in FREEU_FACTORS if name in block.__dict__} for block in blocks]
    try:
        if factors is not None:
            unet.enable_freeu(**factors)  # type: ignore[operator]
        yield
    finally:
        for block, kept in zip(blocks, before, strict=True):
            for name in FREEU_FACTORS:
                block.__dict__.pop(name, None)
            block.__dict__.update(kept)
