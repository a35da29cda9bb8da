"""The texts of a call: how they are read, and which of them diffusers' own pipeline draws.

a plain text that fits one chunk         diffusers reads it
weights, BREAK, embeddings, any length   encoded here, and diffusers draws from `prompt_embeds`
edits, alternation, AND, networks        drawn by our passes
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..loaders.lora.peft_inject import scaled_adapters
from .argument_values import check_clip_skip
from .checks import prompt_list
from .conditioning import Conditioning, repeated_whole
from .prompt.encode import PromptEncoder
from .prompt.prompt_2 import second_texts
from .prompt.text_encoder import PromptSettings


_TEXT_ARGUMENTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")


class StockTexts(NamedTuple):
    """The texts of a call that diffusers' own pipeline draws."""

    encoder: PromptEncoder | None = None  # encodes them; None: diffusers reads them


def stock_texts(pipe: Any, given: Mapping[str, Any]) -> StockTexts | None:
    """How diffusers' own pipeline draws the texts of a call; None where it cannot.

    A text is read alike whatever else is in its batch: so one that diffusers would cut is encoded here, and the
    others with it.
    """
    if isinstance(given["prompt_embeds"], Conditioning):
        return None
    positive = _flat_texts(given["prompt"], given["prompt_2"])
    negative = _flat_texts(given["negative_prompt"], given["negative_prompt_2"])
    flat = [*positive, *negative]
    if not all(isinstance(text, str) for text in flat):
        return None
    if not flat:
        return StockTexts()
    encoder = pipe.attached.encoder(pipe, own_padding=True)
    skips = given["clip_skip"] is not None and not pipe.is_sdxl  # diffusers' own needs transformers 4 for that
    embedded = given["prompt_embeds"] is not None
    if (embedded or not skips) and all(encoder.is_plain(text) for text in flat):
        return StockTexts()
    static = all(encoder.is_static(text) for text in positive)
    if embedded or not static or not all(encoder.is_static(text, negative=True) for text in negative):
        return None
    return StockTexts(encoder)


def stock_embeds(pipe: Any, given: Mapping[str, Any], encoder: PromptEncoder) -> tuple[dict[str, Any], Conditioning]:
    """Arguments of diffusers' own call that stand for static texts, and the conditioning that they hold.

    prompt_embeds, negative_prompt_embeds: (prompts, 77 * n, dim), all of one length: shorter ones repeat themselves as
    a whole, so that each draws what it draws alone. SDXL: also the pooled ones (prompts, dim).
    """
    prompts, negatives = prompt_list(given["prompt"], given["negative_prompt"], 1)
    seconds = second_texts(given["prompt_2"], given["negative_prompt_2"], len(prompts), pipe.is_sdxl)
    settings = stock_settings(pipe, given, PromptSettings())
    check_clip_skip(given["clip_skip"], pipe.text_encoder)
    models = [each.model for each in encoder.encoders]
    with scaled_adapters(models, (given["cross_attention_kwargs"] or {}).get("scale", 1.0)):
        found = encoder.conditioning(prompts, negatives, 1, settings=settings, seconds=seconds)
    cond = [pieces[0].schedule[0] for pieces in found.positive]
    zeros = pipe.is_sdxl and settings.zeros_for_empty  # which diffusers makes itself
    uncond = [] if zeros else [schedule[0] for schedule in found.negative]
    dtype = models[-1].dtype
    rows = torch.stack(repeated_whole([entry.embeds for entry in cond + uncond])).to(dtype)
    arguments = {**dict.fromkeys(_TEXT_ARGUMENTS), "prompt_embeds": rows[: len(cond)]}
    if uncond:
        arguments["negative_prompt_embeds"] = rows[len(cond) :]
    if pipe.is_sdxl:
        pooled = torch.stack([entry.pooled for entry in cond + uncond]).to(dtype)
        arguments["pooled_prompt_embeds"] = pooled[: len(cond)]
        arguments["negative_pooled_prompt_embeds"] = pooled[len(cond) :] if uncond else None
    return arguments, found


def _flat_texts(*texts: Any) -> list[Any]:
    return [each for text in texts if text is not None for each in ([text] if isinstance(text, str) else text)]


def stock_settings(pipe: Any, given: Mapping[str, Any], settings: PromptSettings) -> PromptSettings:
    """How texts are read without a sampler: `clip_skip` and an empty negative prompt mean what diffusers means."""
    zeros = given["negative_prompt"] is None and pipe.config.force_zeros_for_empty_prompt
    return replace(settings, clip_skip=given["clip_skip"], zeros_for_empty=zeros)
